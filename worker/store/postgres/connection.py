"""The connections to a database: writers and readers.

After any fault that casts doubt on it, a connection is closed, and the next use opens a new one.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from worker.errors import StoreUnavailable, StoreUnusable
from worker.store.consumption import Consumption
from worker.store.database import Database, Fetch, Reader, Writer
from worker.store.postgres import partitions
from worker.store.postgres.address import Address
from worker.store.postgres.checks import require_server
from worker.store.postgres.driver import Driver
from worker.store.postgres.faults import fault, incomplete
from worker.store.postgres.guard import Guard
from worker.store.postgres.log import PostgresLog
from worker.store.postgres.migrations import identity, is_ours, prepare
from worker.store.postgres.schemas import require_columns, require_schemas
from worker.store.postgres.session import Session, connect
from worker.store.postgres.transaction import PostgresTransaction
from worker.store.statements import Parameters, Row
from worker.store.streams import Snapshots
from worker.store.tables import Schema, SchemaMistake

OBJECTS = """
    SELECT relname FROM pg_class
    WHERE relname = ANY ($1::text[]) AND pg_table_is_visible(oid) ORDER BY relname
"""
# The server reads the whole log to count it, which may take longer than a statement may.
MESSAGES = "SELECT coalesce(sum(messages), 0) FROM streams"
FILL = "INSERT INTO filler VALUES ($1)"


class PostgresDatabase(PostgresLog, Database):
    """What a writer and a reader have in common: a connection that is opened when it is needed."""

    _name = f"projection-worker {os.getpid()}"
    """What the server shows beside the connection."""
    _writes = False
    _is_primarys = False
    """Whether it goes to the server that takes writes, if there are several."""

    def __init__(self, address: Address) -> None:
        """Name the database; nothing is opened yet."""
        self.address = address
        self.named = address.named
        self._session: Session | None = None
        self._id: str | None = None
        """Known once it was open."""

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; if the block was cancelled, without waiting for the server."""
        if isinstance(exc, asyncio.CancelledError):
            self._abort()
        await self.close()

    async def close(self) -> None:
        """Close the connection; closing it twice is harmless."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return all rows of a query, outside any transaction of ours."""
        async with self.lent() as session:
            return await session.fetch(sql, parameters)

    async def id(self) -> str:
        """Return the id that identifies this database: random, chosen when it was made."""
        await self.session()
        return str(self._id)

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Session]:
        """Lend the connection; after an error it is dropped, with what it has not committed.

        Raises `StoreUnavailable` or `StoreUnusable` for the driver's errors, and `SchemaMistake`.
        """
        session = await self.session()
        try:
            yield session
        except Exception as error:
            # The next use opens another one, which costs little.
            self._abort()
            raise self._fault(error) from error
        except BaseException:
            self._abort()
            raise

    async def session(self) -> Session:
        """Return the open connection; open one if there is none, or the last one was lost."""
        if self._session is None or not self._session.is_open:
            if self._id is None:
                raise StoreUnusable(f"The database is not open ({self.named}).", "open it first.")
            await self._open(is_first=False)
        if self._session is None:
            raise StoreUnavailable(f"The connection was lost ({self.named}).", "try again.")
        return self._session

    async def _open(self, *, is_first: bool) -> None:
        self._abort()
        session = await connect(
            self.address, self._name, is_first=is_first, writes=self._writes or self._is_primarys
        )
        try:
            await require_server(session, self.named, writes=self._writes)
            found = await self._identify(session)
        except BaseException as error:
            session.abort()
            if isinstance(error, Exception):
                raise self._fault(error) from error
            raise
        if self._id not in (None, found):
            session.abort()
            raise StoreUnusable(
                f"The address leads to another database now ({self.named}).",
                "correct WORKER_DATABASE, or start the worker again if it is meant.",
            )
        self._id = found
        self._session = session

    async def _identify(self, session: Session) -> str:
        """Return the id of the database, which was made already."""
        return await identity(session, self.address)

    def _fault(self, error: Exception) -> Exception:
        if isinstance(error, StoreUnavailable | StoreUnusable | SchemaMistake):
            return error
        return fault(error, self.named) or incomplete(self.named, error)

    def _abort(self) -> None:
        """Drop the connection; the next use opens another one."""
        session, self._session = self._session, None
        if session is not None:
            session.abort()

    async def partitions(self) -> int | None:
        """Return over how many partitions the messages are spread; None if none has decided."""
        async with self.lent() as session:
            return await partitions.partitions(session)

    async def consumption(self) -> list[Consumption]:
        """Return what workers have reported, in the order of the partitions."""
        async with self.lent() as session:
            return await partitions.consumption(session)

    async def require_schemas(self, schema: Schema) -> None:
        """Raise `SchemaMistake` for a table that PostgreSQL could not keep."""
        async with self.lent() as session:
            await require_schemas(session, self.address, schema)

    async def require_columns(self, schema: Schema) -> None:
        """Raise `StoreUnusable` if a table has other columns than its schema."""
        async with self.lent() as session:
            await require_columns(session, self.address, schema)

    async def messages(self) -> int:
        """Return the number of all messages in the log, as their streams count them."""
        ((messages,),) = await self.fetch_all(MESSAGES)
        return int(messages)

    async def _has_rows(self, table: str) -> bool:
        if table == "streams":
            # One is opened before its first message is accepted, or rejected.
            return bool(await self.fetch_all("SELECT 1 FROM streams WHERE messages > 0 LIMIT 1"))
        return await super()._has_rows(table)

    async def _existing(self, tables: list[str]) -> list[str]:
        rows = await (await self.session()).ask(OBJECTS, tables)
        return [name for (name,) in rows]


class PostgresWriter(PostgresDatabase, Writer):
    """A connection that writes, one of any number."""

    _writes = True

    def __init__(self, address: Address) -> None:
        """Name the database; nothing is opened yet."""
        super().__init__(address)
        self._snapshots = Snapshots()
        self._guard: tuple[Session, Guard] | None = None
        # A transaction and a report take turns.
        self._turn = asyncio.Lock()
        self._opening: asyncio.Timeout | None = None
        self._patience: float | None = None
        """How long an opening may take besides the driver's own limits: none once it gives up."""

    async def __aenter__(self) -> Self:
        """Open, as `open` does."""
        await self.open()
        return self

    async def open(self) -> None:
        """Open and check the database, making the worker's own schemas and tables if necessary.

        Raises `StoreUnusable` for a server that refuses the worker or may lose what it confirmed,
        and for a database that is not the worker's or has a newer schema. Raises `StoreUnavailable`
        if trying again may help.
        """
        await self._open(is_first=self._id is None)

    async def _identify(self, session: Session) -> str:
        if self._id is None:
            return await prepare(session, self.address)
        # A schema that is gone must not be taken for a new one.
        return await super()._identify(session)

    @asynccontextmanager
    async def transaction(
        self, *, in_bulk: bool = False, meanwhile: Callable[[], None] | None = None
    ) -> AsyncIterator[PostgresTransaction]:
        """Begin; commit at the end of the block, or roll back if it raises.

        `in_bulk` changes nothing. `meanwhile` is called while the server commits.
        """
        async with self._turn:
            session = await self.session()
            async with self._transaction(session, meanwhile) as tx:
                yield tx

    @asynccontextmanager
    async def _transaction(
        self, session: Session, meanwhile: Callable[[], None] | None
    ) -> AsyncIterator[PostgresTransaction]:
        # What is remembered is dropped if the transaction fails.
        snapshots, self._snapshots = self._snapshots, Snapshots()
        tx = self._begin(session, snapshots)
        try:
            await tx.run("BEGIN")
            yield tx
            await tx.commit(meanwhile)
            self._snapshots = snapshots
        except BaseException as error:
            await self._roll_back(session, tx, error)
            if isinstance(error, Exception):
                # Also if the block has turned the fault into another error.
                tx.register.require_no_store_fault()
            raise

    def _begin(self, session: Session, snapshots: Snapshots) -> PostgresTransaction:
        if self._guard is None or self._guard[0] is not session:
            self._guard = (session, Guard(session, self.address.schema))
        driver = Driver(session, self._guard[1], self.named)
        return PostgresTransaction(session, driver, self.named, snapshots)

    async def _roll_back(
        self, session: Session, tx: PostgresTransaction, error: BaseException
    ) -> None:
        # Nobody knows whether a statement ran if its caller stopped waiting for it.
        if tx.register.casts_doubt or not isinstance(error, Exception):
            self._abort()
            return
        try:
            await session.run("ROLLBACK")
        except BaseException as failed:
            # The server rolls back once the connection is gone.
            self._abort()
            if not isinstance(failed, Exception):
                raise

    async def _open(self, *, is_first: bool) -> None:
        try:
            async with asyncio.timeout(self._patience) as self._opening:
                await super()._open(is_first=is_first)
        except TimeoutError as error:
            raise StoreUnavailable(
                f"The worker ends, and no longer waits for the server ({self.named}).",
                "find out why it does not answer.",
            ) from error
        finally:
            self._opening = None

    def give_up(self) -> None:
        """Drop the connection; whatever waits for the server, now or later, is unavailable."""
        self._patience = 0
        self._abort()
        if self._opening is not None:
            self._opening.reschedule(asyncio.get_running_loop().time())

    async def partitions(self) -> int | None:
        """Return over how many partitions the messages are spread; None if none has decided."""
        async with self._turn:
            return await super().partitions()

    async def agree_on_partitions(self, first: int) -> int:
        """Return the number of partitions, which a new database takes from `first`."""
        async with self._turn, self.lent() as session:
            return await partitions.agree_on_partitions(session, first)

    async def set_partitions(self, number: int) -> None:
        """Note another number of partitions, which all workers find within seconds."""
        async with self._turn, self.lent() as session:
            await partitions.set_partitions(session, number)

    async def report(self, consumption: Sequence[Consumption]) -> None:
        """Note what this worker consumes, in the place of what others have said about it."""
        async with self._turn, self.lent() as session:
            await partitions.report(session, consumption)

    async def probe(self, least_bytes: int = 1) -> None:
        """Prove that `least_bytes` bytes can be committed, and leave the database unchanged."""
        async with self.transaction() as tx:
            # Random, because the server compresses anything else.
            tx.add(FILL, [(os.urandom(least_bytes),)])
            tx.add("DELETE FROM filler")


class PostgresReader(PostgresDatabase, Reader):
    """A connection that only reads, also from a standby; works while workers write."""

    _name = f"projection-worker reader {os.getpid()}"

    async def __aenter__(self) -> Self:
        """Open; raises `StoreUnusable` if there is no database of the worker."""
        await self._open(is_first=True)
        return self

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Fetch]:
        """Return what fetches rows as of one moment, whatever is committed during the block."""
        async with self.lent() as session:
            await session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            # Before the first query takes the snapshot. Otherwise a rebuild could still replace the
            # tables, and the snapshot would show the new ones as empty.
            await session.run("LOCK TABLE messages IN ACCESS SHARE MODE")
            # Not by `fetch_all`, which would open another connection if this one were lost.
            yield session.fetch
            await session.run("COMMIT")

    async def exists(self) -> bool:
        """Return whether a worker has made the database already; needs no connection before."""
        session = await connect(self.address, self._name, writes=False)
        try:
            return await is_ours(session, self.address)
        finally:
            await session.close()


class PrimaryReader(PostgresReader):
    """A connection that only reads, from the server that takes writes."""

    _is_primarys = True
