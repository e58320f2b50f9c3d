"""Waits for other processes: the one place where tests poll and have deadlines.

A deadline is there for what never happens, not for what happens slowly. So it counts the time of an
otherwise idle machine: with four programs running on two cores, a minute of patience lasts two, and
while the machine stands still, it does not pass at all.
"""

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, overload

PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.01
# For looks into another process, while many tests run at once.
LOOK_SECONDS = 0.05
# RabbitMQ's lists may be five seconds old, and rabbitmqctl takes half a second of CPU.
LISTING_SECONDS = 1.0
# A look or a turn of the loop takes less, unless the machine or the process stood still.
LONGEST_STEP_SECONDS = 2.0
CORES = os.cpu_count() or 1

T = TypeVar("T")


def crowding() -> float:
    """Return how many times slower than alone a program runs here: 1 on a quiet machine."""
    return max(1.0, os.getloadavg()[0] / CORES)


def patience(seconds: float = PATIENCE_SECONDS) -> float:
    """Return how many seconds a wait may take now that may take this many on a quiet machine.

    For calls with a timeout that wait by themselves, such as those of sockets and threads.
    """
    return seconds * crowding()


class Patience:
    """A deadline in seconds of a quiet machine; its clock moves only when it is polled."""

    def __init__(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Begin to wait."""
        self._left = seconds
        self._seen_at = time.monotonic()

    def is_over(self) -> bool:
        """Return whether the time has passed."""
        now = time.monotonic()
        step, self._seen_at = now - self._seen_at, now
        self._left -= min(step, LONGEST_STEP_SECONDS) / crowding()
        return self._left < 0


@overload
async def eventually(
    look: Callable[[], Awaitable[T | None]], within: float = ..., every: float = ...
) -> T: ...
@overload
async def eventually(
    look: Callable[[], T | None], within: float = ..., every: float = ...
) -> T: ...
async def eventually(
    look: Callable[[], Any], within: float = PATIENCE_SECONDS, every: float = POLL_SECONDS
) -> Any:
    """Poll until the result is true, and return it; fail if that takes too long.

    `every` is the pause between two polls; expensive ones should be rare.
    """
    waiting = Patience(within)
    while True:
        seen = look()
        found = await seen if inspect.isawaitable(seen) else seen
        if found:
            return found
        assert not waiting.is_over(), f"not within {within} seconds; seen last: {found!r}"
        await asyncio.sleep(every)  # noqa: TID251 - another process gives no event


@asynccontextmanager
async def patiently(seconds: float = PATIENCE_SECONDS) -> AsyncIterator[None]:
    """End the block with `TimeoutError` if it takes too long."""
    loop = asyncio.get_running_loop()
    waiting = Patience(seconds)
    timer: asyncio.Handle

    def look() -> None:
        nonlocal timer
        if waiting.is_over():
            limit.reschedule(loop.time())
        else:
            timer = loop.call_later(LONGEST_STEP_SECONDS / 2, look)

    async with asyncio.timeout(None) as limit:
        timer = loop.call_soon(look)
        try:
            yield
        finally:
            timer.cancel()


async def turns(number: int) -> None:
    """Let the loop turn this often: a moment of its work, counted and not timed."""
    for _ in range(number):
        await asyncio.sleep(0)  # noqa: TID251 - yields to the loop, and takes no time
