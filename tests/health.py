"""Reads a worker's health over HTTP."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from urllib.error import HTTPError
from urllib.request import urlopen

from tests.processes import WorkerProcess
from tests.waiting import eventually, patience


def asked(url: str) -> tuple[bool, str]:
    """Return whether a worker says that it is well, and its reason."""
    try:
        with urlopen(url, timeout=patience()) as answer:
            document = json.load(answer)
    except HTTPError as error:
        with error:
            document = json.load(error)
    return document["ok"], document["reason"]


def read(url: str) -> str:
    with urlopen(url, timeout=patience()) as answer:
        return str(answer.read().decode())


Ask = Callable[[str], Awaitable[tuple[bool, str]]]


def asking(worker: WorkerProcess) -> Ask:
    async def ask(path: str) -> tuple[bool, str]:
        (line,) = worker.said("health_served")
        return await asyncio.to_thread(asked, line["url"] + path)

    return ask


async def until_ready(ask: Ask) -> None:
    async def is_ready() -> bool:
        return (await ask("/readyz"))[0]

    await eventually(is_ready)


async def until_not_ready(ask: Ask) -> str:
    """Wait for a worker that is live but not ready; return the reason."""

    async def reason() -> str | None:
        is_well, reason = await ask("/readyz")
        return None if is_well else reason

    found = await eventually(reason)
    assert (await ask("/livez"))[0]
    return found
