"""Letting time pass: here it is what is done to the worker, not what a test hopes for."""

import asyncio


async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds)  # noqa: TID251 - how long a fault lasts is part of the fault
