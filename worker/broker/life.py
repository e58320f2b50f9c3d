"""The life of a session, which ends when it is lost or when the worker drains."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from worker.broker.connection import loss_raised_as
from worker.errors import SessionLost


def ended(reason: str) -> SessionLost:
    """Return the error that says why a session is over."""
    return SessionLost(
        f"The session with the broker ended ({reason}).",
        "the worker opens a new one by itself; if it does not, see RabbitMQ's log.",
    )


class Life:
    """The two ways in which a session ends (lost or drained), and waits that end with it."""

    def __init__(self) -> None:
        """Begin a life in the running loop."""
        loop = asyncio.get_running_loop()
        self._ends: list[Callable[[], None]] = []
        # Futures, because waiting for events would take tasks, which would have to be ended.
        self._drained: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()

    @property
    def drains(self) -> bool:
        """Whether the worker takes no more deliveries."""
        return self._drained.done()

    def call_when_it_ends(self, call: Callable[[], None]) -> None:
        """Register a callback for the time when the worker drains or the session is lost."""
        self._ends.append(call)

    def call_when_lost(self, call: Callable[[BaseException], None]) -> None:
        """Register a callback that gets the reason in the turn of the loop after the loss."""

        def on_lost(lost: asyncio.Future[None]) -> None:
            if error := lost.exception():
                call(error)

        self._lost.add_done_callback(on_lost)

    def drain(self) -> None:
        """Take no more deliveries; those that wait are left to the broker."""
        if not self._drained.done():
            self._drained.set_result(None)
        self._call_back()

    def lose(self, reason: str) -> None:
        """End the session with `SessionLost`; only the first reason counts.

        Unsettled deliveries go back to the queue.
        """
        self.end(ended(reason))

    @contextmanager
    def depends_on_channel(self) -> Iterator[None]:
        """End the session and raise `SessionLost` if the block finds that the channel has ended."""
        try:
            with loss_raised_as(ended):
                yield
        except SessionLost as error:
            self.end(error)
            raise

    def end_with(self, task: asyncio.Task[None]) -> None:
        """End the session if one of its tasks has failed by a bug; waiters get the exception."""
        if not task.cancelled() and (bug := task.exception()):
            self.end(bug)

    def require(self) -> None:
        """Raise `SessionLost` if the session was lost, or the bug that ended one of its tasks."""
        if self._lost.done():
            self._lost.result()

    async def lasts(self, seconds: float) -> bool:
        """Wait this long; return False as soon as the session is lost or the worker drains."""
        await asyncio.wait(
            {self._drained, self._lost}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        return not (self._drained.done() or self._lost.done())

    async def wait(
        self, until: asyncio.Future[Any] | None = None, seconds: float | None = None
    ) -> None:
        """Wait for a future, for at most this many seconds, or until the worker drains.

        Raises `SessionLost` if the session is lost meanwhile. The future is not cancelled, and its
        own exception is not raised.
        """
        ends = {self._drained, self._lost} | ({until} if until is not None else set())
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self.require()

    def end(self, error: BaseException) -> None:
        """End the session with an error, which waiters get; only the first error counts."""
        if not self._lost.done():
            self._lost.set_exception(error)
            self._lost.exception()  # Marks it as retrieved, because nobody may be waiting for it.
            self._call_back()

    def _call_back(self) -> None:
        for call in self._ends:
            call()
