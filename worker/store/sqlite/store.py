"""The store in an SQLite file: one queue, one worker, one file."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from worker.store.findings import Content, Finding
from worker.store.fresh_tables import FreshTables
from worker.store.sqlite.connection import FileWriter, Reader
from worker.store.sqlite.examination import examine
from worker.store.sqlite.fresh_tables import FileTables
from worker.store.sqlite.inspection import file_id, wal_bytes
from worker.store.sqlite.lock import WriterLock
from worker.store.sqlite.tables import replace_tables, require_no_triggers
from worker.store.store import Lock, Store
from worker.store.tables import Schema


class Writer(FileWriter):
    """The one connection that writes the file, and can also replace its tables."""

    async def create_tables(self, schema: Schema, versions: Mapping[str, int]) -> None:
        """Create the projections' empty tables in a file that has none yet."""
        await replace_tables(self, schema, versions)

    def wal_bytes(self) -> int:
        """Return the size of the file's WAL in bytes; 0 if there is none."""
        return wal_bytes(Path(self.path))

    async def rebuilding(self, schema: Schema) -> AbstractAsyncContextManager[FreshTables]:
        """Return empty tables beside the live ones, to be put in their place."""
        await require_no_triggers(self, schema)
        return FileTables(Path(self.path), schema, self)


class SqliteStore(Store):
    """A database in a file."""

    is_shared = False

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened yet."""
        self.path = path
        self.named = f"path {path}"

    def lock(self) -> WriterLock:
        """Return the lock of the file's writer; nothing is locked yet."""
        return WriterLock(self.path)

    def writer(self, lock: Lock) -> Writer:
        """Return a writer, which is not open yet; the caller has acquired the lock."""
        return Writer(self.path, lock if isinstance(lock, WriterLock) else None)

    def reader(self) -> Reader:
        """Return a connection that can only read, and is not open yet."""
        return Reader(self.path)

    def auditing(self, schema: Schema) -> AbstractAsyncContextManager[FreshTables]:
        """Return empty tables that are only compared with the live ones, on one snapshot."""
        return FileTables(self.path, schema)

    async def exists(self) -> bool:
        """Return whether the file exists."""
        return self.path.is_file()

    async def examine(self, content: Content) -> list[Finding]:
        """Return whether the file, its disk and SQLite are as the worker needs them."""
        return await examine(self.path, content)

    async def id(self) -> str | None:
        """Return the file's id; None if the file does not exist or has no id yet."""
        return await file_id(self.path)
