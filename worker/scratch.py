"""A copy of one event's rows, folded by today's handlers in a private database.

For commands that show an event. A message that the handlers cannot apply does not stop the others.
"""

from collections.abc import Sequence

from worker.fold import Turns, fold, stored
from worker.registry import Registry
from worker.store.failures import HandlersFailed
from worker.store.statements import Row
from worker.store.transaction import StoreTransaction


class ScratchStream:
    """The part of one event's stream that has been folded so far."""

    def __init__(self, registry: Registry, tx: StoreTransaction, event_id: str) -> None:
        """Start from the rows in the transaction's database."""
        self._registry = registry
        self._tx = tx
        self._event_id = event_id
        self._turns = Turns()

    async def apply(self, entries: Sequence[Row]) -> None:
        """Fold the next messages of the log, in the order of position; skip those that fail."""
        if entries and await self.failure(entries) is not None:
            for entry in entries:
                await self.failure([entry])

    async def failure(self, entries: Sequence[Row]) -> str | None:
        """Fold all of the messages, or none and return the reason."""
        bodies = [entry["body"] for entry in entries]
        try:
            async with self._tx.savepoint():
                messages = stored(self._registry, self._tx, self._event_id, bodies)
                await fold(self._registry, self._tx, messages, self._turns)
        except HandlersFailed as failed:
            return str(failed)
        return None

    async def rows(self) -> list[dict[str, object]]:
        """Return the event's rows from all tables."""
        return await self._tx.rows_of(self._registry.versions, self._event_id)
