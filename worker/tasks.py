"""Cancellation and timeouts for work that must end.

A cancellation is a request, and the AMQP library may lose it. aiormq 7.2 raises the reason why a
channel closes instead (abc.py, `TaskWrapper`), drops that reason while it closes the channel
(base.py, `__closer`), and awaits the network while it handles a cancellation (connection.py,
`__writer`). Python 3.11's `asyncio.wait_for`, which aiormq uses, loses a cancellation that arrives
just as the work completes. So nothing here relies on a single cancellation, or waits without a
bound for its effect.

Apart from the places that tests/unit/test_tasks.py lists with their reasons, `.cancel()`,
`asyncio.timeout` and the like are used only here.
"""

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

# A task that ends normally needs only a few turns of the loop. Five parts of a session end one
# after the other, and a drain, which has 4.5 seconds, waits for each.
END_SECONDS = 0.25
# When it is cancelled, the library closes a channel. This is longer than that takes on a slow link:
# a second cancellation before then would make it close the channel twice, and that ends the
# connection.
AGAIN_SECONDS = 1.0


async def end(task: asyncio.Future[Any]) -> None:
    """Cancel a task repeatedly until it ends; wait for that, but at most `END_SECONDS`.

    After `END_SECONDS` the task is abandoned: it is still cancelled repeatedly, but nobody waits
    for it. Whatever the task raises is dropped.
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
    """Return the work's result; end the work after a timeout, or if the caller is cancelled.

    Raises `TimeoutError` after the timeout and at most `END_SECONDS` more.
    """
    task = asyncio.ensure_future(work)
    # The work may fail in the very turn of the loop in which the caller is cancelled.
    task.add_done_callback(_drop)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            await end(task)
    raise TimeoutError


class SelfCancelled(Exception):
    """Other people's code has cancelled the task in which it runs."""


@types.coroutine
def contained(work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Do work that runs other people's code; raise `SelfCancelled` if it cancels its own task.

    Such a cancellation is taken back, and the work goes on to its end. One from elsewhere arrives
    between two steps of the work, and is passed to it.
    """
    task = asyncio.current_task()
    step: Callable[[Any], Any] = work.send
    value: Any = None
    has_cancelled = False
    while True:
        before = task.cancelling() if task else 0
        try:
            waits_for = step(value)
        except StopIteration as ended:
            result: T = ended.value
            break
        finally:
            if task and task.cancelling() > before:
                has_cancelled = True
                yield from _take_back(task, before)
        try:
            step, value = work.send, (yield waits_for)
        except BaseException as error:  # noqa: BLE001 - the work gets it
            step, value = work.throw, error
    if has_cancelled:
        raise SelfCancelled("A handler must not cancel the task in which it runs.")
    return result


def _take_back(task: asyncio.Task[Any], before: int) -> Generator[None, None, None]:
    while task.cancelling() > before:
        task.uncancel()
    try:
        # Before Python 3.13, a cancellation that was taken back is raised all the same, once.
        yield
    except asyncio.CancelledError:
        if task.cancelling() > before:
            raise


async def first_of(
    attempts: Iterable[Callable[[], Coroutine[Any, Any, T]]],
    delay_seconds: float,
    failure: type[Exception],
    discard: Callable[[T], None],
) -> T:
    """Return the result of the first attempt that succeeds.

    Each attempt starts when the one before it fails, or after a delay, so that an attempt that
    hangs does not hold up the next. An attempt fails by raising `failure`; if all fail, an
    `ExceptionGroup` of these is raised. Any other exception is raised at once. All other attempts
    are ended, and their results are passed to `discard`.
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
    """Mark the exception as retrieved, because asyncio would otherwise log it."""
    if not task.cancelled():
        task.exception()
