"""Opening the database: one writer, any number of readers.

`Writer.open` is a checklist, each pragma with its reason. Knows nothing of what the tables mean.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import aiosqlite

from worker.errors import StoreUnusable
from worker.store.checks import (
    READ_HINT,
    identity,
    opening_failed,
    reading_failed,
    require_ours,
    require_sound,
)
from worker.store.driver import Parameters, connect
from worker.store.faults import casts_doubt, fault, incomplete
from worker.store.file import (
    IN_MEMORY,
    Place,
    create_private,
    place_of,
    remove_rebuild_file,
    require_place,
)
from worker.store.migrations import SCHEMA_VERSION, migrate
from worker.store.transaction import Row, Transaction

OLDEST_SQLITE = (3, 38, 0)  # the operator ->> on JSON

# Short, because a wait inside SQLite can't be interrupted by a shutdown; the worker waits by
# trying again.
BUSY_MILLISECONDS = 1_000
CACHE_KIBIBYTES = 8 * 1024
WAL_BYTES_KEPT = 64 * 1024 * 1024
# The commit that fills so many pages of the WAL also writes them into the database. Many make that
# rare, and what was written again and again is then written once; few make it short.
CHECKPOINT_PAGES, CHECKPOINT_PAGES_IN_BULK = 1_000, 16_000

PRAGMAS = (
    # Readers go on while the worker writes, and a commit costs one fsync instead of two or more.
    "PRAGMA journal_mode = WAL",
    # In WAL mode NORMAL may lose the last commits at a power cut; their messages are acked.
    "PRAGMA synchronous = FULL",
    f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}",
    f"PRAGMA cache_size = -{CACHE_KIBIBYTES}",
    f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}",
    # A long reader lets the WAL grow; give the disk back once it has gone.
    f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}",
    # A read-only root file system may have no place for temporary files.
    "PRAGMA temp_store = MEMORY",
    # Nobody puts functions of his own into our schema (sqlite.org/security.html).
    "PRAGMA trusted_schema = OFF",
)


class Database:
    """What a writer and a reader have in common: a file that is open within `async with`."""

    def __init__(self, path: Path | str) -> None:
        """Name the file; nothing is opened yet."""
        self.path = path
        self.named = path
        """The file that errors name."""
        self._connection: aiosqlite.Connection | None = None

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; a cancelled block leaves no statement running."""
        await self.interrupt_if_cancelled(exc)
        await self.close()

    async def interrupt_if_cancelled(self, error: BaseException | None) -> None:
        """End the statement that runs, if nobody waits for it any more.

        Never otherwise: SQLite would not checkpoint when it closes, as was seen with 3.40.
        """
        if isinstance(error, asyncio.CancelledError) and self._connection is not None:
            await self._connection.interrupt()

    async def close(self) -> None:
        """Close the file; twice is once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Give all rows of a query, outside any transaction of ours.

        Raises `StoreUnavailable` if the file cannot be read now, and `StoreUnusable` if it is
        damaged or does not have what is asked of it.
        """
        connection = await self._ready()
        try:
            return list(await connection.execute_fetchall(sql, parameters))
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def _fault(self, error: sqlite3.Error) -> Exception:
        if blamed := fault(error, self.named):
            return blamed
        if isinstance(error, sqlite3.OperationalError):
            return incomplete(self.named, error)
        return error

    async def _ready(self) -> aiosqlite.Connection:
        return self._opened()

    def _opened(self) -> aiosqlite.Connection:
        if self._connection is None:
            raise StoreUnusable(f"The database is not open (path {self.path}).", "open it first.")
        return self._connection


class Writer(Database):
    """The one connection that writes; `:memory:` is a database that nobody else sees.

    After an error of the disk nothing is believed: the next use closes the file and opens it anew.
    """

    def __init__(self, path: Path | str) -> None:
        """Name the file; nothing is opened yet."""
        super().__init__(path)
        self._place: Place | None = None
        self._is_in_doubt = False
        self._checkpoint_pages = CHECKPOINT_PAGES

    async def __aenter__(self) -> Self:
        """Open, as `open` does."""
        await self.open()
        return self

    async def open(self) -> None:
        """Open and check the file, creating it if need be.

        Raises `StoreUnusable` for a file that is not ours, of a newer schema or damaged, and
        `StoreUnavailable` where trying again may help.
        """
        require_sqlite()
        if self.path != IN_MEMORY:
            create_private(self.path)
            # Whoever opens the file for writing holds its lock, so that no rebuild goes on.
            remove_rebuild_file(self.path)
        self._place = place_of(self.path)
        await self._open(may_be_new=True)

    async def _open(self, *, may_be_new: bool) -> None:
        try:
            # Never makes a file: one that is gone must not be taken for a new one.
            self._connection = await connect(
                IN_MEMORY if self.path == IN_MEMORY else _uri(Path(self.path), "rw"),
                timeout_seconds=BUSY_MILLISECONDS / 1_000,
            )
            try:
                await self._prepare(may_be_new=may_be_new)
            except BaseException as error:
                await self.interrupt_if_cancelled(error)
                await self.close()
                raise
        except sqlite3.Error as error:
            raise opening_failed(self.path, error) from error

    def _fault(self, error: sqlite3.Error) -> Exception:
        self._is_in_doubt = self._is_in_doubt or casts_doubt(error)
        return super()._fault(error)

    async def _ready(self) -> aiosqlite.Connection:
        require_place(self.path, self._place)
        if self._is_in_doubt:
            with suppress(sqlite3.Error):
                await self.close()
            await self._open(may_be_new=False)
            self._is_in_doubt = False
        return self._opened()

    @asynccontextmanager
    async def transaction(
        self, *, in_bulk: bool = False, meanwhile: Callable[[], None] | None = None
    ) -> AsyncIterator[Transaction]:
        """Begin; commit at the end of the block, or roll back if it raises.

        `in_bulk` is for work of which nobody awaits a single part: one commit in many may then take
        some tenths of a second, so that all together take less. `meanwhile` is called once SQLite
        commits, which leaves the loop idle: a sync of the disk, and Python's lock let go.

        When the block has been left without an error, what it wrote is on the disk; so it is where
        `meanwhile` raises, which is raised then. Raises
        `StoreUnavailable` if SQLite cannot begin, write or commit now, and `StoreUnusable` if the
        file is damaged or no longer in its place.
        """
        connection = await self._ready()
        tx = Transaction(connection, self.path)
        try:
            await self._checkpoint_after(
                tx, CHECKPOINT_PAGES_IN_BULK if in_bulk else CHECKPOINT_PAGES
            )
            # A deferred transaction that comes to write fails at once, whatever the busy timeout
            # (sqlite.org/lang_transaction.html, section 2.2).
            tx.add("BEGIN IMMEDIATE")
            yield tx
            # Where its fsync fails, its frames stay in the WAL but not in SQLite's index of it
            # (wal.c, sqlite3WalFrames): the next commit overwrites them, or the next opening finds
            # them whole and counts them as committed. Whichever it is, the log tells, when the
            # same batch is tried again, what it has already from what it has not.
            await tx.commit(meanwhile)
            # A file that was deleted meanwhile keeps nothing.
            require_place(self.path, self._place)
        except BaseException as error:
            await self.interrupt_if_cancelled(error)
            await self._roll_back(connection)
            # Of a statement that nobody waits for any more, it is not known whether it has run.
            is_cancelled = isinstance(error, asyncio.CancelledError)
            self._is_in_doubt = self._is_in_doubt or tx.casts_doubt or is_cancelled
            if tx.fault is not None and isinstance(error, Exception):
                # Also where the block has made another error of it.
                raise tx.fault from tx.fault.__cause__
            raise

    async def _checkpoint_after(self, tx: Transaction, pages: int) -> None:
        if pages != self._checkpoint_pages:
            await tx.run(f"PRAGMA wal_autocheckpoint = {pages}")
            self._checkpoint_pages = pages

    async def file_id(self) -> str:
        """Return what tells this file from every other: random, chosen when it was made."""
        ((file_id,),) = await self.fetch_all("SELECT id FROM file")
        return str(file_id)

    async def probe(self) -> None:
        """Commit a write that changes nothing; raises what `transaction` does if that fails."""
        async with self.transaction() as tx:
            (version,) = await tx.fetch_one("PRAGMA user_version") or (SCHEMA_VERSION,)
            # Writes the first page also where the number stays, which no UPDATE does: that one
            # leaves a page alone if its bytes are the same.
            await tx.run(f"PRAGMA user_version = {version}")

    @asynccontextmanager
    async def attached(self, path: Path, name: str) -> AsyncIterator[None]:
        """Have another database file under a schema name, for transactions in the block."""
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
                # The next opening lets go of it.
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
        connection.row_factory = Row
        application_id, version, tables = await identity(connection)
        is_new = may_be_new and version == 0 and tables == 0
        if not is_new:
            require_ours(self.path, application_id, version)
        for pragma in PRAGMAS:
            await connection.execute(pragma)
        self._checkpoint_pages = CHECKPOINT_PAGES
        if not is_new:
            await require_sound(connection, self.path)
        await migrate(connection, version)
        # What SQLite finds in the WAL of a process that was killed, or whose fsync failed, may be
        # in the page cache alone, and a later fsync need not bring it to the disk
        # (wiki.postgresql.org/wiki/Fsync_Errors). A batch of duplicates writes nothing, so it
        # would be acked on the strength of that. A checkpoint writes it anew and syncs. Readers
        # do not stand in its way: what came into the WAL while one was connected was synced
        # before SQLite showed it to anyone (wal.c, sqlite3WalFrames).
        await connection.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")


class Reader(Database):
    """A connection that can only read; works while the worker writes, and when it is stopped."""

    async def __aenter__(self) -> Self:
        """Open the file; raises `StoreUnusable` if it is missing or not ours."""
        uri = read_only_uri(Path(self.path))
        try:
            self._connection = await connect(uri)
            self._connection.row_factory = Row
            await self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
            application_id, version, _ = await identity(self._connection)
            require_ours(self.path, application_id, version)
        except BaseException as error:
            await self.close()
            if isinstance(error, sqlite3.Error):
                raise reading_failed(self.path, error) from error
            raise
        return self


def read_only_uri(path: Path) -> str:
    """Name an existing file so that SQLite opens it for reading only."""
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


def require_sqlite(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> None:
    """Raise `StoreUnusable` if Python's SQLite is too old."""
    if version < OLDEST_SQLITE:
        raise StoreUnusable(
            f"Python's SQLite is too old ({'.'.join(map(str, version))}).",
            f"use a Python with SQLite {'.'.join(map(str, OLDEST_SQLITE))} or newer.",
        )
