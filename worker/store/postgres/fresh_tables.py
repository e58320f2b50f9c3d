"""Empty tables beside the live ones, for an audit, and what those of a rebuild have in common.

All is one transaction on a session of its own: whenever it ends before a commit, nothing has
changed. Workers go on meanwhile.
"""

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import asyncpg

from worker.errors import StoreUnusable
from worker.store.fresh_tables import Difference, FreshTables
from worker.store.log import Key
from worker.store.postgres.address import Address
from worker.store.postgres.driver import Driver
from worker.store.postgres.faults import fault, incomplete
from worker.store.postgres.guard import Guard
from worker.store.postgres.migrations import identity
from worker.store.postgres.schemas import (
    TEMPORARY,
    column_types,
    create_table,
    not_permitted,
    qualified,
)
from worker.store.postgres.session import Session, connect
from worker.store.postgres.tables import in_the_way
from worker.store.postgres.transaction import PostgresTransaction
from worker.store.statements import Row
from worker.store.streams import Snapshots
from worker.store.tables import Schema, quoted

STREAMS_AT_ONCE = 200
STREAMS = """
    SELECT event_id FROM streams WHERE event_id > $1 AND messages > 0
    ORDER BY event_id LIMIT $2
"""
# Every name in these statements is quoted, and comes from a projection or the settings.
DIFFERING = """
    SELECT DISTINCT event_id FROM (
        (SELECT {columns} FROM {live} EXCEPT ALL SELECT {columns} FROM {here})
        UNION ALL
        (SELECT {columns} FROM {here} EXCEPT ALL SELECT {columns} FROM {live})
    ) AS found ORDER BY event_id
"""


class PostgresTables(FreshTables):
    """Empty tables in a schema that the search path names first, until the transaction ends."""

    purpose: str
    """What the server shows beside the session."""
    begin: str
    """The statement that begins the transaction."""
    is_first: bool
    """Whether no connection to the database has been opened before."""

    def __init__(self, address: Address, schema: Schema, here: str) -> None:
        """Name the schema in which the tables are made; nothing is opened yet."""
        self.named = address.named
        self._address = address
        self._live = address.schema
        self._schema = schema
        self._here = here
        self._opened: Session | None = None

    async def __aenter__(self) -> Self:
        """Connect, begin, and create the tables.

        Raises `StoreUnavailable` if the database cannot be used now, `StoreUnusable` if it is not
        ours or does not let the worker create tables, and `SchemaMistake` for a table that this
        store could not keep.
        """
        session = self._opened = await connect(
            self._address,
            f"projection-worker {self.purpose}",
            search=(self._here, self._live),
            is_long=True,
            is_first=self.is_first,
        )
        guard = Guard(session, self._here)
        driver = Driver(session, guard, self.named)
        self.tx = PostgresTransaction(session, driver, self.named, Snapshots())
        try:
            with self._faults():
                await identity(session, self._address)
                await session.run(self.begin)
                await self._prepare()
                for table, statements in self._schema.items():
                    await create_table(self._session, self._here, table, statements)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the session, which rolls back what has not been committed."""
        await self._close()

    async def _close(self) -> None:
        session, self._opened = self._opened, None
        if session is not None:
            session.abort()

    @property
    def _session(self) -> Session:
        if self._opened is None:
            raise StoreUnusable(f"The database is not open ({self.named}).", "open it first.")
        return self._opened

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Raise the worker's errors for those of the driver."""
        try:
            yield
        except asyncpg.InsufficientPrivilegeError as error:
            raise self._denied(error) from error
        except asyncpg.DuplicateTableError as error:
            raise in_the_way(self._address, str(error)) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise fault(error, self.named) or incomplete(self.named, error) from error

    @abstractmethod
    async def _prepare(self) -> None:
        """Lock what must stay, in the transaction that has begun."""

    @abstractmethod
    def _denied(self, error: asyncpg.InsufficientPrivilegeError) -> StoreUnusable:
        """Return the error to raise if the role may not make these tables."""

    async def _asked(self, sql: str, *arguments: object) -> list[Row]:
        """Return the rows of a query of our own."""
        with self._faults():
            return await self._session.ask(sql, *arguments)

    async def _scanned(self, sql: str) -> list[Row]:
        """Return the rows of a query that reads whole tables."""
        with self._faults():
            # Sessions of the worker find rows by key; their plans are made on empty tables.
            await self._session.run("SET LOCAL enable_seqscan = on")
            rows = await self._session.ask(sql)
            await self._session.run("SET LOCAL enable_seqscan = off")
        return rows

    async def kinds(self) -> set[str]:
        """Return the kinds of all messages in the live log."""
        return {row[0] for row in await self._asked("SELECT kind FROM kinds")}

    async def count_messages(self) -> int:
        """Return the number of messages in the live log, as it is now."""
        return await self._count(self._live, "log")

    async def count_rows(self, table: str) -> int:
        """Return the number of rows in one of these tables."""
        return await self._count(self._here, table)

    async def _count(self, schema: str, table: str) -> int:
        name = qualified(schema, table)
        ((rows,),) = await self._scanned(f"SELECT count(*) FROM {name}")  # noqa: S608 - ours
        return int(rows)

    async def streams(self) -> AsyncIterator[dict[Key, str]]:
        """Yield all streams of the live log in batches, each by the id of its event."""
        last = ""
        while rows := await self._asked(STREAMS, last, STREAMS_AT_ONCE):
            yield {event_id: event_id for (event_id,) in rows}
            last = rows[-1][0]

    async def differing(self, table: str) -> list[str]:
        """Return the events whose rows here and in the live table differ in any byte."""
        here = await self._columns(self._here, table)
        if list(here.items()) == list((await self._columns(self._live, table)).items()):
            sql = DIFFERING.format(
                columns=_exactly(here),
                live=qualified(self._live, table),
                here=qualified(self._here, table),
            )
        else:
            name = qualified(self._here, table)
            sql = f"SELECT DISTINCT event_id FROM {name} ORDER BY event_id"  # noqa: S608 - ours
        return [event_id for (event_id,) in await self._scanned(sql)]

    async def difference(self, table: str, event_id: str) -> Difference:
        """Return both rows of one event."""
        pair = []
        for schema in (self._live, self._here):
            exists = await self._columns(schema, table)
            name = qualified(schema, table)
            sql = f"SELECT * FROM {name} WHERE event_id = $1 LIMIT 1"  # noqa: S608 - ours
            found = await self._asked(sql, event_id) if exists else []
            pair.append(dict(found[0]) if found else None)
        return Difference(table, event_id, *pair)

    async def _columns(self, schema: str, table: str) -> dict[str, str]:
        with self._faults():
            return await column_types(self._session, schema, table)


class AuditedTables(PostgresTables):
    """Temporary tables, which are only compared, on one snapshot of the live ones."""

    purpose = "audit"
    begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE"
    is_first = True

    def __init__(self, address: Address, schema: Schema) -> None:
        """Compare the live tables of a database with these; nothing is opened yet."""
        super().__init__(address, schema, TEMPORARY)

    async def _prepare(self) -> None:
        # Before the first query, which takes the snapshot. Otherwise a rebuild could still replace
        # the tables, and the snapshot would show the new ones as empty.
        await self._session.run("LOCK TABLE projections IN ACCESS SHARE MODE")

    def _denied(self, error: asyncpg.InsufficientPrivilegeError) -> StoreUnusable:
        return not_permitted(error)

    async def put_in_place(self, versions: Mapping[str, int]) -> tuple[str, ...]:
        """Raise `ValueError`: these tables are only for a comparison."""
        raise ValueError("these tables are only for a comparison")


def _exactly(columns: Mapping[str, str]) -> str:
    """Return the columns as the bytes that they hold, whatever the database takes for equal."""
    exact = {
        "text": '{} COLLATE "C"',
        "double precision": "float8send({})",
    }
    return ", ".join(
        ['event_id COLLATE "C" AS event_id']
        + [
            exact.get(declared, "{}").format(quoted(name)) + f" AS column_{place}"
            for place, (name, declared) in enumerate(columns.items())
        ]
    )
