"""Waiting for what other processes do. The one place where a test polls."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.01

T = TypeVar("T")


@overload
async def eventually(look: Callable[[], Awaitable[T | None]], within: float = ...) -> T: ...
@overload
async def eventually(look: Callable[[], T | None], within: float = ...) -> T: ...
async def eventually(look: Callable[[], Any], within: float = PATIENCE_SECONDS) -> Any:
    """Look until something true is seen, and give it; fail if that takes too long.

    Looks at least once more after the deadline, so that a stalled machine fails no test.
    """
    deadline = time.monotonic() + within
    while True:
        is_last = time.monotonic() > deadline
        seen = look()
        found = await seen if inspect.isawaitable(seen) else seen
        if found:
            return found
        assert not is_last, f"not within {within} seconds; seen last: {found!r}"
        await asyncio.sleep(POLL_SECONDS)  # noqa: TID251 - another process gives no event


async def turns(number: int) -> None:
    """Let the loop turn so often: a moment of what goes on in it, counted and not timed."""
    for _ in range(number):
        await asyncio.sleep(0)  # noqa: TID251 - yields to the loop, and takes no time
