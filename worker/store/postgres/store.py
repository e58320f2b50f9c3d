"""The store in PostgreSQL: many workers, many machines."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from worker.store.findings import Content, Finding
from worker.store.fresh_tables import FreshTables
from worker.store.postgres.address import Address
from worker.store.postgres.connection import PostgresReader, PostgresWriter
from worker.store.postgres.examination import examine
from worker.store.postgres.fresh_tables import AuditedTables
from worker.store.postgres.rebuilding import RebuiltTables
from worker.store.postgres.tables import create_tables
from worker.store.store import Lock, Store
from worker.store.tables import Schema


class NoLock:
    """The lock of a database that any number of workers may write: none."""

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Do nothing."""

    def acquire(self) -> None:
        """Do nothing: each transaction locks the streams that it writes."""

    def release(self) -> None:
        """Do nothing."""


class Writer(PostgresWriter):
    """A connection that writes, and can also replace the tables."""

    async def create_tables(self, schema: Schema, versions: Mapping[str, int]) -> None:
        """Create the projections' empty tables in a database that has none yet."""
        await self.require_log()
        async with self.lent() as session:
            await create_tables(session, self.address, schema, versions)

    async def rebuilding(self, schema: Schema) -> AbstractAsyncContextManager[FreshTables]:
        """Return empty tables beside the live ones, to be put in their place."""
        await self.require_log()
        return RebuiltTables(self.address, schema)


class PostgresStore(Store):
    """A database on a server."""

    is_shared = True

    def __init__(self, address: Address) -> None:
        """Name the database; nothing is opened yet."""
        self.address = address
        self.named = address.named

    def lock(self) -> NoLock:
        """Return the lock of the writers: none, because any number of them may write."""
        return NoLock()

    def writer(self, lock: Lock) -> Writer:
        """Return a writer, which is not open yet."""
        return Writer(self.address)

    def reader(self) -> PostgresReader:
        """Return a connection that can only read, and is not open yet."""
        return PostgresReader(self.address)

    def auditing(self, schema: Schema) -> AbstractAsyncContextManager[FreshTables]:
        """Return empty tables that are only compared with the live ones, on one snapshot."""
        return AuditedTables(self.address, schema)

    async def exists(self) -> bool:
        """Return whether a worker has made it already."""
        return await PostgresReader(self.address).exists()

    async def examine(self, content: Content) -> list[Finding]:
        """Return whether the server, and the rights there, are as the worker needs them."""
        return await examine(self.address, content)
