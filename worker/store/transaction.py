"""One transaction: what handlers see of it, and what every store promises of its own.

A handler's `execute` does not call the database: statements wait until they are needed. Those with
the same text then run together (statements.py). Failures are noted in a register (failures.py).
"""

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from worker.store.failures import PlainAuthor, Register
from worker.store.log import Entry, Log, MessageKey
from worker.store.statements import Parameters, Row, Statements, copied, require_harmless
from worker.store.streams import Stream
from worker.store.tables import ROWS, Values

# Follows the statements that wait when nothing is asked.
NOTHING = "SELECT 1 WHERE FALSE"
# How many events one query reads the rows of. Few, because a row may have a megabyte.
ROWS_AT_ONCE = 50


class Transaction:
    """What the handler of one message writes and reads through.

    Writes are deferred: they run when something is fetched or the batch commits. So
    `try: await tx.execute(...)` catches no error of the statement. Say in the statement what should
    happen instead (`ON CONFLICT ... DO ...`), or fetch first and then decide.
    """

    __slots__ = ("_store",)

    def __init__(self, store: "StoreTransaction") -> None:
        """Write and read in the store's transaction, for the handler that runs."""
        self._store = store

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        """Write: note the statement; it runs before the batch commits or anything is fetched.

        `parameters` is a sequence for `?` and a mapping for `:name`. They are copied, so a list may
        be changed and used again. Raises `ValueError` for a statement that would begin or end a
        transaction, and `TypeError` for parameters that are neither.
        """
        if type(parameters) is not tuple:
            parameters = copied(parameters)
        self._store.statements.add_for_handler(sql, parameters)

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Read: return all rows, with every earlier write of this transaction in them.

        Raises what the database raises, for this statement or for one that was deferred until now.
        """
        return await self._store.fetch_for_handler(sql, parameters)

    async def fetch_one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """Read: return the first row, or None; sees and raises what `fetch_all` does."""
        rows = await self.fetch_all(sql, parameters)
        return rows[0] if rows else None


class StoreTransaction(Log):
    """The transaction itself: it runs statements, undoes savepoints, and commits.

    Belongs to one task; ends with the batch.
    """

    def __init__(self, register: Register) -> None:
        """Begin with nothing to run, and nothing gone wrong."""
        self.statements = Statements()
        """The statements that wait."""
        self.register = register
        """What has gone wrong."""
        self._for_handlers = Transaction(self)
        self._depth = 0

    def for_author(self, author: PlainAuthor) -> Transaction:
        """Return what an author writes and reads through, until this is called for the next one."""
        self.statements.author = author
        return self._for_handlers

    async def fetch_for_handler(self, sql: str, parameters: Parameters) -> list[Row]:
        """Run what waits, and return all rows of a query of the handler that runs."""
        require_harmless(sql)
        return await self._call(sql, parameters, self.statements.author)

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run what waits, and return all rows of a query of the store itself.

        It also works after handlers have failed: rows of their streams may be wrong, those of other
        streams are right. Raises `Refused` for a statement of the store.
        """
        return await self._call(sql, parameters)

    async def flush(self) -> None:
        """Run all statements that wait, the store's own and those of handlers.

        Raises `HandlersFailed` for statements of handlers, and `Refused` for those of the store.
        """
        await self._call(NOTHING)
        self.register.require_no_failure()

    def forget(self) -> None:
        """Drop the statements that wait, and forget failures; the caller undoes what has run."""
        self.statements.take()
        self.register.forget()

    def add(self, sql: str, rows: Iterable[Parameters] | None = None) -> None:
        """Add a statement of the store itself to those that wait: for each row, or once."""
        self.statements.add(sql, rows)

    async def keep_alive(self) -> None:
        """Show the database that this transaction goes on, in a fold that asks it nothing.

        Raises `StoreUnavailable` if the database has ended it already.
        """

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undo all that the block wrote, and nothing else, if the block raises.

        Raises what `flush` does for statements of the block, or for some that waited before it.
        """
        # Each level has a name of its own, so that no rollback is taken for that of an inner one.
        name = f"part_{self._depth}"
        await self.run(f"SAVEPOINT {name}")
        self._depth += 1
        try:
            yield
            await self.flush()
        except Exception:
            self.forget()
            # Even if a handler caught it and raised another error, no message is at fault.
            self.register.require_no_store_fault()
            self.add(f"ROLLBACK TO {name}")
            raise
        finally:
            self._depth -= 1
            # With the next call, before anything else.
            self.add(f"RELEASE {name}")

    async def run(self, sql: str) -> None:
        """Run what waits, and then one statement of the store itself; raises what `flush` does."""
        self.add(sql)
        await self.flush()

    async def rows_of(self, tables: Iterable[str], event_id: str) -> list[dict[str, object]]:
        """Return the rows of one event from all tables."""
        return [
            dict(row)
            for table in tables
            for row in await self.fetch_all(ROWS.format(table), (event_id,))
        ]

    @abstractmethod
    async def commit(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Run what waits, and commit; `meanwhile` is called while the database does."""

    @abstractmethod
    async def lock(self, event_ids: Collection[str], versions: Mapping[str, int]) -> None:
        """Let no other writer add to the streams of these events until this transaction ends.

        Called once, before anything else, with all events of the batch, and with the versions of
        the caller's projections. Raises `StoreUnavailable` if a worker with other versions has
        rebuilt the tables meanwhile.
        """

    @abstractmethod
    async def streams(self, event_ids: Iterable[str]) -> dict[str, Stream]:
        """Return the streams of these events as they are now; new ones are opened."""

    @abstractmethod
    def remember(self, streams: Mapping[str, Stream]) -> None:
        """Note streams as this transaction has left them."""

    @abstractmethod
    async def known(self, keys: Collection[MessageKey]) -> dict[MessageKey, str]:
        """Return the bodies of those messages that are already in the log."""

    @abstractmethod
    def append(self, entries: Sequence[Entry]) -> None:
        """Add messages to the log, and note the kinds that it holds.

        `Refused` is raised when they are written, if the log has one of them already.
        """

    @abstractmethod
    async def with_rows(self, tables: Iterable[str], event_ids: Collection[str]) -> set[str]:
        """Return the events that have a row in any of the tables, once waiting statements ran."""

    async def lone_rows(
        self, tables: Iterable[str], event_ids: Sequence[str]
    ) -> dict[str, dict[str, Values] | None]:
        """Return event -> table -> its row; None for an event with several rows in one table."""
        found: dict[str, dict[str, Values] | None] = {event_id: {} for event_id in event_ids}
        for start in range(0, len(event_ids), ROWS_AT_ONCE):
            some = event_ids[start : start + ROWS_AT_ONCE]
            for table in tables:
                for row in await self._counted_rows(table, some):
                    *values, count = row
                    of_event = found[row["event_id"]]
                    if count > 1:
                        found[row["event_id"]] = None
                    elif of_event is not None:
                        of_event[table] = tuple(values)
        return found

    @abstractmethod
    async def _counted_rows(self, table: str, event_ids: Sequence[str]) -> list[Row]:
        """Return one row of each event that has any, followed by the number that it has."""

    @abstractmethod
    async def _call(
        self, sql: str, parameters: Parameters = (), author: PlainAuthor | None = None
    ) -> list[Row]:
        """Run what waits, and return all rows of a query; None stands for the store itself.

        A handler's statement that fails is noted, and the other handlers' statements still run, so
        that one call finds all failures. Raises the failure that stops this author.
        """
