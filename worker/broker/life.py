"""How long a session goes on: until it is lost, or the worker drains."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from worker.broker.connection import telling_loss
from worker.errors import SessionLost


def ended(reason: str) -> SessionLost:
    """Return the error that says why a session is over."""
    return SessionLost(
        f"The session with the broker ended ({reason}).",
        "a new one is opened by itself; see RabbitMQ's log if it is not.",
    )


class Life:
    """The two ways in which a session ends, and waiting that ends with it."""

    def __init__(self) -> None:
        """Begin; belongs to the running loop."""
        loop = asyncio.get_running_loop()
        self._ends: list[Callable[[], None]] = []
        # Futures, so that waiting for them takes no tasks that would have to be ended.
        self._drained: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()

    @property
    def drains(self) -> bool:
        """Whether the worker takes no more."""
        return self._drained.done()

    def call_when_it_ends(self, call: Callable[[], None]) -> None:
        """Call this once it drains or is lost."""
        self._ends.append(call)

    def call_when_lost(self, call: Callable[[BaseException], None]) -> None:
        """Call this with the reason once it is lost, in the next turn of the loop."""

        def tell(lost: asyncio.Future[None]) -> None:
            if error := lost.exception():
                call(error)

        self._lost.add_done_callback(tell)

    def drain(self) -> None:
        """Take no more; what waits is left to the broker."""
        if not self._drained.done():
            self._drained.set_result(None)
        self._tell_end()

    def lose(self, reason: str) -> None:
        """End it, for the first reason that is given: what is not settled is the broker's again."""
        self.end(ended(reason))

    @contextmanager
    def depends_on_channel(self) -> Iterator[None]:
        """Lose it, and raise `SessionLost`, if what the block asks of the channel fails."""
        try:
            with telling_loss(ended):
                yield
        except SessionLost as error:
            self.end(error)
            raise

    def end_with(self, task: asyncio.Task[None]) -> None:
        """End it with a task of it that ended by a bug: who waits gets what the task raised."""
        if not task.cancelled() and (bug := task.exception()):
            self.end(bug)

    def require(self) -> None:
        """Raise `SessionLost` if it has been lost, or the bug that ended a task of it."""
        if self._lost.done():
            self._lost.result()

    async def lasts(self, seconds: float) -> bool:
        """Wait so long; return False as soon as it is lost or the worker drains."""
        await asyncio.wait(
            {self._drained, self._lost}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        return not (self._drained.done() or self._lost.done())

    async def wait(
        self, until: asyncio.Future[Any] | None = None, seconds: float | None = None
    ) -> None:
        """Wait for a future, for so many seconds at most, or until the worker drains.

        Raises `SessionLost` if it is lost meanwhile. The future is not cancelled, and its own
        exception is not raised.
        """
        ends = {self._drained, self._lost} | ({until} if until is not None else set())
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self.require()

    def end(self, error: BaseException) -> None:
        """End it with an error, of which only the first counts: who waits gets it."""
        if not self._lost.done():
            self._lost.set_exception(error)
            self._lost.exception()  # Marks it as seen: it may end a session that nobody awaits.
            self._tell_end()

    def _tell_end(self) -> None:
        for call in self._ends:
            call()
