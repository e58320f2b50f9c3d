"""The connections to a file: one writer, any number of readers.

Knows nothing about what the tables mean. opening.py sets a writer up.
"""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import aiosqlite

from worker.errors import StoreUnusable, WorkerError
from worker.store.database import Database, Fetch, Writer
from worker.store.database import Reader as DatabaseReader
from worker.store.sqlite.checks import (
    READ_HINT,
    identity,
    opening_failed,
    reading_failed,
    require_ours,
)
from worker.store.sqlite.driver import BEGIN, connect
from worker.store.sqlite.faults import casts_doubt, fault, incomplete
from worker.store.sqlite.file import SCRATCH, create_private, remove_rebuild_file
from worker.store.sqlite.library import require_safe_commits
from worker.store.sqlite.lock import WriterLock
from worker.store.sqlite.log import SqliteLog
from worker.store.sqlite.opening import (
    BUSY_MILLISECONDS,
    CHECKPOINT_PAGES,
    CHECKPOINT_PAGES_IN_BULK,
    prepare,
)
from worker.store.sqlite.schemas import require_columns
from worker.store.sqlite.streams import Streams
from worker.store.sqlite.transaction import SqliteTransaction
from worker.store.sqlite.watch import FileWatch
from worker.store.statements import Parameters, Row
from worker.store.tables import Schema

PROGRESS = "SELECT id, commits FROM file"
OBJECTS = """
    SELECT name, type FROM main.sqlite_schema
    WHERE lower(name) IN (SELECT value FROM json_each(?)) ORDER BY name
"""


class FileDatabase(SqliteLog, Database):
    """What a writer and a reader have in common: a file that is open within `async with`."""

    def __init__(self, path: Path | str, blamed: Path | None = None) -> None:
        """Name the file; nothing is opened yet. Errors name the file `blamed`, if there is one."""
        self.path = path
        self._blamed = blamed or path
        self.named = f"path {self._blamed}"
        self._connection: aiosqlite.Connection | None = None

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; if the block was cancelled, no statement keeps running."""
        await self.interrupt_if_cancelled(exc)
        await self.close()

    async def interrupt_if_cancelled(self, error: BaseException | None) -> None:
        """End the running statement if nobody waits for it any more.

        Otherwise nothing is interrupted: after an interrupt, SQLite 3.40 was seen to close without
        a checkpoint.
        """
        if isinstance(error, asyncio.CancelledError) and self._connection is not None:
            await self._connection.interrupt()

    async def close(self) -> None:
        """Close the file; closing it twice is harmless."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return all rows of a query, outside any transaction of ours.

        Raises `StoreUnavailable` if the file cannot be read now, and `StoreUnusable` if it is
        damaged or lacks what the query asks for.
        """
        connection = await self._ready()
        try:
            return list(await connection.execute_fetchall(sql, parameters))
        except sqlite3.Error as error:
            raise self._fault(error) from error

    async def id(self) -> str:
        """Return the id that identifies this file: random, chosen when it was created."""
        ((file_id,),) = await self.fetch_all("SELECT id FROM file")
        return str(file_id)

    async def require_schemas(self, schema: Schema) -> None:
        """Do nothing: every schema was tried when the projections were loaded."""

    async def require_columns(self, schema: Schema) -> None:
        """Raise `StoreUnusable` if a table in the file has other columns than its schema."""
        await require_columns(self, schema)

    async def _existing(self, tables: list[str]) -> list[str]:
        return [name for name, _ in await self.fetch_all(OBJECTS, (json.dumps(tables),))]

    def _fault(self, error: sqlite3.Error) -> Exception:
        if blamed := fault(error, self._blamed):
            return blamed
        if isinstance(error, sqlite3.OperationalError):
            return incomplete(self._blamed, error)
        return error

    async def _ready(self) -> aiosqlite.Connection:
        return self._opened()

    def _opened(self) -> aiosqlite.Connection:
        if self._connection is None:
            raise StoreUnusable(f"The database is not open (path {self.path}).", "open it first.")
        return self._connection


class FileWriter(FileDatabase, Writer):
    """The one connection that writes; `SCRATCH` is a database that nobody else sees.

    After a disk error the connection is not trusted: the next use closes and reopens the file.
    """

    def __init__(self, path: Path | str, lock: WriterLock | None = None) -> None:
        """Name the file; nothing is opened yet.

        `lock` is the lock that this process holds for the file. Each commit is noted in it.
        """
        super().__init__(path)
        self._watch = None if path == SCRATCH else FileWatch(Path(path), lock)
        self._is_in_doubt = False
        self._checkpoint_pages = CHECKPOINT_PAGES
        self._streams = Streams()

    async def __aenter__(self) -> Self:
        """Open, as `open` does."""
        await self.open()
        return self

    async def open(self) -> None:
        """Open and check the file, creating it if necessary.

        Raises `StoreUnusable` for a file that is not ours, has a newer schema, is damaged, or has
        lost what its last writer committed, and if this SQLite can lose commits. Raises
        `StoreUnavailable` if trying again may help.
        """
        if self.path != SCRATCH:
            require_safe_commits()
            create_private(self.path)
            # Whoever opens the file for writing holds its lock, so no rebuild is running.
            remove_rebuild_file(self.path)
        if self._watch is not None:
            await self._watch.opening()
        await self._open(may_be_new=True)

    async def _open(self, *, may_be_new: bool) -> None:
        try:
            # Never creates a file: a missing one must not be taken for a new one.
            self._connection = await connect(
                SCRATCH if self.path == SCRATCH else _uri(Path(self.path), "rw"),
                timeout_seconds=BUSY_MILLISECONDS / 1_000,
            )
            try:
                await self._prepare(may_be_new=may_be_new)
            except BaseException as error:
                await self.interrupt_if_cancelled(error)
                await super().close()
                raise
        except sqlite3.Error as error:
            raise opening_failed(self.path, error) from error

    async def close(self) -> None:
        """Close the file and leave an empty WAL; closing it twice is harmless.

        A user who may only read the files can create neither the WAL nor its shared memory, and
        cannot read the database without them.
        """
        async with AsyncExitStack() as stack:
            with suppress(sqlite3.Error, WorkerError):
                if self._connection is not None and not self._is_in_doubt:
                    await self._keep_wal(self._connection, stack)
            await super().close()

    async def _keep_wal(self, connection: aiosqlite.Connection, stack: AsyncExitStack) -> None:
        """Empty the WAL, and let a read-only connection be the last one to close.

        The last connection to close removes the WAL, unless it was opened read-only.
        """
        if self._watch is None:
            return
        await self._watch.beginning()
        # Do not wait for readers, which may take any time. Closing checkpoints what it can.
        await connection.execute_fetchall("PRAGMA busy_timeout = 0")
        ((is_busy, _, _),) = await connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        if not is_busy:
            last = await connect(read_only_uri(Path(self.path)))
            stack.push_async_callback(last.close)
            await last.execute_fetchall(PROGRESS)

    def _fault(self, error: sqlite3.Error) -> Exception:
        self._is_in_doubt = self._is_in_doubt or casts_doubt(error)
        return super()._fault(error)

    async def _ready(self) -> aiosqlite.Connection:
        if self._is_in_doubt:
            if self._watch is not None:
                self._watch.require_database()
            with suppress(sqlite3.Error):
                await super().close()
            await self._open(may_be_new=False)
            self._is_in_doubt = False
        connection = self._opened()
        if self._watch is not None:
            await self._watch.beginning()
        return connection

    @asynccontextmanager
    async def transaction(
        self, *, in_bulk: bool = False, meanwhile: Callable[[], None] | None = None
    ) -> AsyncIterator[SqliteTransaction]:
        """Begin; commit at the end of the block, or roll back if it raises.

        `in_bulk` is for work in which nobody waits for a single part. One commit in many may then
        take some tenths of a second, but all of them together take less. `meanwhile` is called
        while SQLite commits: that syncs the disk without holding Python's lock, so the event loop
        would be idle.

        Once the block has ended without an error, what it wrote is on the disk. That is also true
        if `meanwhile` raises an exception, which is raised after the commit. Raises
        `StoreUnavailable` if SQLite cannot begin, write or commit now, and `StoreUnusable` if the
        file is damaged or no longer in its place.
        """
        connection = await self._ready()
        # What is remembered is dropped if the transaction fails.
        streams, self._streams = self._streams, Streams()
        tx = SqliteTransaction(connection, self.path, streams)
        try:
            await self._checkpoint_after(
                tx, CHECKPOINT_PAGES_IN_BULK if in_bulk else CHECKPOINT_PAGES
            )
            tx.add(BEGIN)
            yield tx
            # If the fsync of the commit fails, its frames stay in the WAL but are missing from
            # SQLite's index of it (wal.c, sqlite3WalFrames). Either the next commit overwrites
            # them, or the next opening finds them complete and counts them as committed. In both
            # cases the log shows, when the batch is tried again, which messages it already has.
            await tx.commit(meanwhile)
            if self._watch is not None:
                # A file that was deleted meanwhile has lost the commit.
                await self._watch.committed(tx.commits)
            self._streams = streams
        except BaseException as error:
            await self.interrupt_if_cancelled(error)
            await self._roll_back(connection)
            # Nobody knows whether a statement ran if its caller stopped waiting for it.
            is_cancelled = isinstance(error, asyncio.CancelledError)
            self._is_in_doubt = self._is_in_doubt or tx.register.casts_doubt or is_cancelled
            if self._watch is not None and isinstance(error, Exception):
                await self._watch.ended()
            if isinstance(error, Exception):
                # Also if the block has turned the fault into another error.
                tx.register.require_no_store_fault()
            raise

    async def _checkpoint_after(self, tx: SqliteTransaction, pages: int) -> None:
        if pages != self._checkpoint_pages:
            await tx.run(f"PRAGMA wal_autocheckpoint = {pages}")
            self._checkpoint_pages = pages

    async def probe(self, least_bytes: int = 1) -> None:
        """Prove that `least_bytes` bytes can be committed, and leave the database unchanged.

        Raises the errors of `transaction` if that fails.
        """
        async with self.transaction() as tx:
            tx.add("DELETE FROM filler")
            # Random, because a file system may compress anything else.
            tx.add("INSERT INTO filler VALUES (randomblob(?))", [(least_bytes,)])
        async with self.transaction() as tx:
            tx.add("DELETE FROM filler")

    @asynccontextmanager
    async def attached(self, path: Path, name: str) -> AsyncIterator[None]:
        """Attach another database file under a schema name, for transactions in the block."""
        connection = await self._ready()
        try:
            await connection.execute(f"ATTACH DATABASE ? AS {name}", (str(path),))
        except sqlite3.Error as error:
            raise opening_failed(path, error) from error
        try:
            yield
        finally:
            try:
                await connection.execute(f"DETACH DATABASE {name}")
            except sqlite3.Error:
                # Reopening the file detaches it.
                self._is_in_doubt = True

    async def _roll_back(self, connection: aiosqlite.Connection) -> None:
        # FULL, IOERR, NOMEM and BUSY may have rolled back already, or may not have.
        if connection.in_transaction:
            try:
                await connection.execute("ROLLBACK")
            except sqlite3.Error:
                self._is_in_doubt = True

    async def _prepare(self, *, may_be_new: bool) -> None:
        connection = self._opened()
        await prepare(connection, self.path, may_be_new=may_be_new)
        self._checkpoint_pages = CHECKPOINT_PAGES
        if self._watch is not None:
            ((file_id, commits),) = await connection.execute_fetchall(PROGRESS)
            await self._watch.opened(file_id, commits)


class Reader(FileDatabase, DatabaseReader):
    """A connection that can only read; works while the worker writes, and when it is stopped.

    Any version of SQLite will do. Only a checkpoint can lose commits, and a read-only connection
    runs none, not even when it is the last to close.
    """

    async def __aenter__(self) -> Self:
        """Open the file; raises `StoreUnusable` if it is missing or not ours."""
        uri = read_only_uri(Path(self.path))
        try:
            self._connection = await connect(uri)
            self._connection.row_factory = sqlite3.Row
            await self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
            application_id, version, _ = await identity(self._connection)
            require_ours(self.path, application_id, version)
        except BaseException as error:
            await self.close()
            if isinstance(error, sqlite3.Error):
                raise reading_failed(self.path, error) from error
            raise
        return self

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Fetch]:
        """Return what fetches rows as of one moment, whatever is committed during the block."""
        connection = self._opened()
        try:
            await self.fetch_all("BEGIN")
            yield self.fetch_all
        except BaseException as error:
            await self.interrupt_if_cancelled(error)
            raise
        finally:
            # SQLite may have ended it by itself.
            with suppress(sqlite3.Error):
                await connection.execute("ROLLBACK")


def read_only_uri(path: Path) -> str:
    """Return the URI with which SQLite opens an existing file read-only."""
    try:
        is_there = path.is_file()
    except OSError as error:
        raise StoreUnusable(
            f"The database cannot be read (path {path}: {error.strerror}).", READ_HINT
        ) from error
    if not is_there:
        raise StoreUnusable(
            f"There is no database (path {path}).",
            "start the worker once, or set WORKER_DATABASE.",
        )
    return _uri(path, "ro")


def _uri(path: Path, mode: str) -> str:
    return f"{path.absolute().as_uri()}?mode={mode}"
