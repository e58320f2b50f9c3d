"""Work that has to end: within a time, or now.

A cancellation is a request, and the AMQP library may lose it. aiormq 7.2 raises the reason why a
channel closes in its place (abc.py, `TaskWrapper`), drops that reason while it closes the channel
(base.py, `__closer`), and awaits the network while it handles one (connection.py, `__writer`).
Python 3.11's `asyncio.wait_for`, which it uses, loses one that comes as the work is done. So
nothing here counts on one cancellation, or waits for its effect without a bound.

`.cancel()`, `asyncio.timeout` and the like are used nowhere else, but for the places that
tests/unit/test_tasks.py lists with their reasons.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

# What ends in order needs a few turns of the loop. Five parts of a session end one after the other,
# and a drain, which has 4.5 seconds, waits for each.
END_SECONDS = 0.25
# Longer than a slow link takes to close a channel, which is what the library does when it is
# cancelled: cut short, it would ask the broker a second time, and that ends the connection.
AGAIN_SECONDS = 1.0


async def end(task: asyncio.Future[Any]) -> None:
    """Cancel a task, again and again until it has ended; return by then, or after a while.

    A task that has not ended after `END_SECONDS` is abandoned: it is still cancelled again and
    again, but nobody waits for it. What the task raises is dropped.
    """
    loop = asyncio.get_running_loop()

    def cancel() -> None:
        if not task.done():
            task.cancel()
            loop.call_later(AGAIN_SECONDS, cancel)

    task.add_done_callback(_drop)
    cancel()
    await asyncio.wait({task}, timeout=END_SECONDS)


async def in_time(work: Awaitable[T], seconds: float) -> T:
    """Return what the work returns; end it if that takes longer, or if the caller is cancelled.

    Raises `TimeoutError` after so many seconds, and those of `END_SECONDS` at most.
    """
    task = asyncio.ensure_future(work)
    # It may fail in the very turn in which the caller is cancelled.
    task.add_done_callback(_drop)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            await end(task)
    raise TimeoutError


async def first_of(
    attempts: Iterable[Callable[[], Coroutine[Any, Any, T]]],
    delay_seconds: float,
    failure: type[Exception],
    discard: Callable[[T], None],
) -> T:
    """Return what the first of several attempts to succeed returns.

    Each begins when the one before has failed, or after a delay; so one that hangs holds up none.
    An attempt has failed if it raises `failure`; if all have, raises an `ExceptionGroup` of these.
    Whatever else one raises is raised at once. All others are ended, and what they return is
    discarded.
    """
    waiting = list(attempts)
    running: set[asyncio.Task[T]] = set()
    failures: list[Exception] = []
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.create_task(waiting.pop(0)()))
            done, running = await asyncio.wait(
                running,
                timeout=delay_seconds if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            while done:
                task = done.pop()
                try:
                    result = task.result()
                except failure as error:
                    failures.append(error)
                else:
                    running |= done
                    return result
    finally:
        await _end_losers(running, discard)
    raise ExceptionGroup("all attempts have failed", failures)


async def _end_losers(losers: set[asyncio.Task[T]], discard: Callable[[T], None]) -> None:
    def drop(task: asyncio.Task[T]) -> None:
        if not task.cancelled() and task.exception() is None:
            discard(task.result())

    for loser in losers:
        loser.add_done_callback(drop)
    await asyncio.gather(*map(end, losers))


def _drop(task: asyncio.Future[Any]) -> None:
    """Mark the exception as seen; asyncio would report it otherwise."""
    if not task.cancelled():
        task.exception()
