"""What every store promises of its database: one writer or many, and any number of readers."""

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from worker.errors import StoreUnusable
from worker.store.consumption import Consumption
from worker.store.fresh_tables import FreshTables
from worker.store.log import Log, Position
from worker.store.statements import Parameters, Row
from worker.store.tables import Schema, require_names
from worker.store.transaction import StoreTransaction

Fetch = Callable[[str, Parameters], Awaitable[list[Row]]]
"""Returns all rows of a query."""

HEAD = """
    SELECT sequence, occurred_at, id FROM messages WHERE event_id = ?
    ORDER BY sequence DESC, occurred_at DESC, id DESC LIMIT 1
"""


class Database(Log):
    """What a writer and a reader have in common: a database that is open within `async with`.

    Its queries raise `StoreUnavailable` if the database cannot be read now, and `StoreUnusable` if
    it is damaged or lacks what the query asks for.
    """

    named: str
    """What errors call the database."""

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Open it."""

    @abstractmethod
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""

    @abstractmethod
    async def id(self) -> str:
        """Return the id that identifies this database: random, chosen when it was made."""

    @abstractmethod
    async def require_schemas(self, schema: Schema) -> None:
        """Raise `SchemaMistake` for a table that this store could not keep."""

    @abstractmethod
    async def require_columns(self, schema: Schema) -> None:
        """Raise `StoreUnusable` if a table has other columns than its schema.

        Pass only tables whose version is the one that the database notes. A difference means that a
        schema was changed without raising its version.
        """

    async def partitions(self) -> int | None:
        """Return over how many partitions the messages are spread.

        Returns None if there is one queue, or no worker has decided yet.
        """
        return None

    async def consumption(self) -> list[Consumption]:
        """Return what workers have reported, in the order of the partitions."""
        return []

    async def kinds(self) -> set[str]:
        """Return the kinds of all messages in the log."""
        return {kind for (kind,) in await self.fetch_all("SELECT kind FROM kinds")}

    async def messages(self) -> int:
        """Return the number of all messages in the log."""
        ((messages,),) = await self.fetch_all("SELECT count(*) FROM log")
        return int(messages)

    async def is_log_empty(self) -> bool:
        """Return whether no message has been accepted yet."""
        return not await self.fetch_all("SELECT 1 FROM log LIMIT 1")

    async def head(self, event_id: str) -> Position | None:
        """Return the position of the last message of a stream, or None if it has no message."""
        rows = await self.fetch_all(HEAD, (event_id,))
        return (rows[0][0], rows[0][1], rows[0][2]) if rows else None

    async def noted_versions(self) -> dict[str, int]:
        """Return table -> version of the projection that folded its rows.

        Raises `StoreUnusable` if the database notes a table name that no projection can have.
        """
        rows = await self.fetch_all("SELECT table_name, version FROM projections")
        versions = {row["table_name"]: row["version"] for row in rows}
        require_names(versions, self.named)
        return versions

    async def require_log(self) -> None:
        """Raise `StoreUnusable` for a database whose log is empty while other tables have rows.

        Such a database is not new. It has lost its log, so nothing could restore its rows.
        """
        if not await self.is_log_empty():
            return
        for table in await self._existing(["streams", *await self.noted_versions()]):
            # Another worker may have added the first messages since. It commits rows and log
            # together, so a look at the log after a look at the rows sees them.
            if await self._has_rows(table) and await self.is_log_empty():
                raise StoreUnusable(
                    f"The log is empty, but the table {table} has rows ({self.named}).",
                    "restore a backup that has the log; or, to start without these rows, move the "
                    "database away or set WORKER_DATABASE to a new one.",
                )

    async def _has_rows(self, table: str) -> bool:
        """Return whether a table holds what only the log could restore."""
        return bool(await self.fetch_all(f"SELECT 1 FROM {table} LIMIT 1"))  # noqa: S608 - ours

    @abstractmethod
    async def _existing(self, tables: list[str]) -> list[str]:
        """Return those of these tables that the database has."""


class Reader(Database):
    """A connection that can only read."""

    @abstractmethod
    def snapshot(self) -> AbstractAsyncContextManager[Fetch]:
        """Return what fetches rows as of one moment, whatever is committed during the block.

        Raises what `fetch_all` does. One task at a time uses the connection.
        """


class Writer(Database):
    """A connection that writes."""

    @abstractmethod
    async def open(self) -> None:
        """Open and check the database, creating the worker's own tables if necessary.

        Raises `StoreUnusable` for a database that this worker cannot use, and `StoreUnavailable` if
        trying again may help.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the database; closing it twice is harmless."""

    @abstractmethod
    def transaction(
        self, *, in_bulk: bool = False, meanwhile: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[StoreTransaction]:
        """Begin; commit at the end of the block, or roll back if it raises.

        `in_bulk` is for work in which nobody waits for a single part. `meanwhile` is called while
        the database commits, because the event loop would be idle.

        Once the block has ended without an error, what it wrote is on the disk. That is also true
        if `meanwhile` raises an exception, which is raised after the commit. Raises
        `StoreUnavailable` if the database cannot begin, write or commit now, and `StoreUnusable` if
        it is damaged or no longer in its place.
        """

    @abstractmethod
    async def probe(self, least_bytes: int = 1) -> None:
        """Prove that `least_bytes` bytes can be committed, and leave the database unchanged.

        Raises the errors of `transaction` if that fails.
        """

    def give_up(self) -> None:
        """End what waits for a server now, because the process is about to end.

        It raises `StoreUnavailable`, as does all that follows. If it was a commit, only the log
        knows whether it succeeded.
        """

    def wal_bytes(self) -> int:
        """Return the size of a write-ahead log that the worker must watch, in bytes."""
        return 0

    async def agree_on_partitions(self, first: int) -> int | None:
        """Return the number of partitions, None for one queue; a new database takes `first`."""
        return None

    async def set_partitions(self, number: int) -> None:
        """Note another number of partitions, which all workers find within seconds."""
        raise StoreUnusable(
            f"This database has one queue without partitions ({self.named}).",
            "move to PostgreSQL first: docs/scale.md, 'Move from SQLite to PostgreSQL'.",
        )

    async def report(self, consumption: Sequence[Consumption]) -> None:
        """Note what this worker consumes, in the place of what others have said about it."""

    @abstractmethod
    async def create_tables(self, schema: Schema, versions: Mapping[str, int]) -> None:
        """Create the projections' empty tables in a database that has none yet."""

    @abstractmethod
    async def rebuilding(self, schema: Schema) -> AbstractAsyncContextManager[FreshTables]:
        """Return empty tables beside the live ones, to be put in their place.

        Raises `StoreUnusable` for a trigger on a live table.
        """
