"""Pauses. Here the passing of time is part of a fault, not what a test relies on."""

import asyncio


async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds)  # noqa: TID251 - how long a fault lasts is part of the fault
