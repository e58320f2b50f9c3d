"""Empty tables beside the live ones, for a rebuild and its comparison with the live tables."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from worker.store.log import Key
from worker.store.transaction import StoreTransaction


@dataclass(frozen=True, slots=True)
class Difference:
    """An event whose live row is not the fold of its stream; None stands for no row."""

    table: str
    event_id: str
    live: Mapping[str, object] | None
    folded: Mapping[str, object] | None


class FreshTables(ABC):
    """The fresh tables, and the live log from which they are filled.

    Where nobody else writes meanwhile, they are folded with `streams` alone. Otherwise, after
    `grown_streams` has ended, the log stays as it is until the end of the block.
    """

    named: str
    """What errors call the live database."""
    tx: StoreTransaction
    """Reads the live log, and writes the fresh tables."""

    @abstractmethod
    async def kinds(self) -> set[str]:
        """Return the kinds of all messages in the live log."""

    @abstractmethod
    async def count_messages(self) -> int:
        """Return the number of messages in the live log."""

    @abstractmethod
    def streams(self) -> AsyncIterator[dict[Key, str]]:
        """Yield all streams of the live log in batches: key -> event.

        Where others may write meanwhile, a stream that has grown comes again, without rows.
        """

    async def grown_streams(self) -> AsyncIterator[dict[Key, str]]:
        """Lock all writers out, and yield the streams that have grown since, without rows."""
        nothing: tuple[dict[Key, str], ...] = ()
        for batch in nothing:
            yield batch

    @abstractmethod
    async def count_rows(self, table: str) -> int:
        """Return the number of rows in one of these tables."""

    @abstractmethod
    async def differing(self, table: str) -> list[str]:
        """Return the events whose rows here and in the live table differ.

        Leaves out those whose stream has grown since it was folded.
        """

    @abstractmethod
    async def difference(self, table: str, event_id: str) -> Difference:
        """Return both rows of one event."""

    @abstractmethod
    async def put_in_place(self, versions: Mapping[str, int]) -> tuple[str, ...]:
        """Replace the live tables by these in one transaction, note the versions, and end.

        Readers see the old rows until the transaction commits. Indexes that somebody else created
        are created again if the version of their table has not changed. Returns the statements of
        all other dropped indexes: there is no telling whether an earlier version created them, or
        whether they still fit.

        Raises `StoreUnusable`, and changes nothing, if the log has been lost, if a table has a
        trigger, or if the name of a table or an index is already taken by something that no
        projection created.
        """
