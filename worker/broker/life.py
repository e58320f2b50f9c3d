"""How long a session goes on: until it is lost, or the worker drains."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from worker.broker.connection import telling_loss
from worker.errors import SessionLost


def ended(reason: str) -> SessionLost:
    """Give the error that says why a session is over."""
    return SessionLost(
        f"The session with the broker ended ({reason}).",
        "a new one is opened by itself; see RabbitMQ's log if it is not.",
    )


class Life:
    """The two ways in which a session ends, and waiting that ends with it."""

    def __init__(self) -> None:
        """Begin; belongs to the running loop."""
        self._drained = asyncio.Event()
        self._ends: list[Callable[[], None]] = []
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def drains(self) -> bool:
        """Whether the worker takes no more."""
        return self._drained.is_set()

    def call_when_it_ends(self, call: Callable[[], None]) -> None:
        """Call this once it drains or is lost."""
        self._ends.append(call)

    def drain(self) -> None:
        """Take no more; what waits is left to the broker."""
        self._drained.set()
        self._tell_end()

    def lose(self, reason: str) -> None:
        """End it, for the first reason that is given: what is not settled is the broker's again."""
        self._end(ended(reason))

    @contextmanager
    def depends_on_channel(self) -> Iterator[None]:
        """Lose it, and raise `SessionLost`, if what the block asks of the channel fails."""
        try:
            with telling_loss(ended):
                yield
        except SessionLost as error:
            self._end(error)
            raise

    def end_with(self, task: asyncio.Task[None]) -> None:
        """End it with a task of it that ended by a bug: who waits gets what the task raised."""
        if not task.cancelled() and (bug := task.exception()):
            self._end(bug)

    def require(self) -> None:
        """Raise `SessionLost` if it has been lost, or the bug that ended a task of it."""
        if self._lost.done():
            self._lost.result()

    async def wait(self, event: asyncio.Event | None = None, seconds: float | None = None) -> None:
        """Wait for an event, for so many seconds at most, or until the worker drains.

        Raises `SessionLost` if it is lost meanwhile.
        """
        waits = [asyncio.ensure_future(self._drained.wait())]
        if event is not None:
            waits.append(asyncio.ensure_future(event.wait()))
        ends: list[asyncio.Future[Any]] = [*waits, self._lost]
        try:
            await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        self.require()

    def _end(self, error: BaseException) -> None:
        if not self._lost.done():
            self._lost.set_exception(error)
            self._lost.exception()  # Marks it as seen: it may end a session that nobody awaits.
            self._tell_end()

    def _tell_end(self) -> None:
        for call in self._ends:
            call()
