"""Opening the database: one writer, any number of readers.

`Writer.open` is a checklist, each pragma with its reason. Knows nothing of what the tables mean.
"""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Self

import aiosqlite

from worker.errors import StoreUnavailable, StoreUnusable
from worker.store.transaction import Parameters, Row, Transaction, unavailable

APPLICATION_ID = 0x70726A77
SCHEMA_VERSION = 1
OLDEST_SQLITE = (3, 38, 0)  # the operator ->> on JSON

# Short, because a wait inside SQLite can't be interrupted by a shutdown; the worker waits by
# trying again.
BUSY_MILLISECONDS = 1_000
CACHE_KIBIBYTES = 16 * 1024
WAL_BYTES_KEPT = 64 * 1024 * 1024

PRAGMAS = (
    # Readers go on while the worker writes, and a commit costs one fsync instead of two or more.
    "PRAGMA journal_mode = WAL",
    # In WAL mode NORMAL may lose the last commits at a power cut; their messages are acked.
    "PRAGMA synchronous = FULL",
    f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}",
    f"PRAGMA cache_size = -{CACHE_KIBIBYTES}",
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
        self._connection: aiosqlite.Connection | None = None

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close the file; twice is once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Give all rows of a query, outside any transaction of ours.

        Raises `StoreUnavailable` if the file cannot be read now.
        """
        try:
            return list(await self._opened().execute_fetchall(sql, parameters))
        except sqlite3.Error as error:
            raise unavailable(error) or error from error

    def _opened(self) -> aiosqlite.Connection:
        if self._connection is None:
            raise StoreUnusable(f"The database is not open (path {self.path}).", "open it first.")
        return self._connection


class Writer(Database):
    """The one connection that writes; `:memory:` is a database that nobody else sees."""

    async def __aenter__(self) -> Self:
        """Open, as `open` does."""
        await self.open()
        return self

    async def open(self) -> None:
        """Open and check the file, creating it if need be.

        Raises `StoreUnusable` for a file that is not ours or of a newer schema, and
        `StoreUnavailable` where trying again may help.
        """
        require_sqlite()
        try:
            self._connection = await aiosqlite.connect(
                self.path, isolation_level=None, timeout=BUSY_MILLISECONDS / 1_000
            )
            try:
                await self._prepare()
            except BaseException:
                await self.close()
                raise
        except sqlite3.Error as error:
            raise self._opening_failed(error) from error

    async def probe(self) -> None:
        """Commit something that changes nothing; raises `StoreUnavailable` if that cannot be."""
        async with self.transaction() as tx:
            await tx.run(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Begin; commit at the end of the block, or roll back if it raises.

        When the block has been left without an error, what it wrote is on the disk. Raises
        `StoreUnavailable` if SQLite cannot begin, write or commit now.
        """
        connection = self._opened()
        try:
            # A deferred transaction that comes to write fails at once, whatever the busy timeout
            # (sqlite.org/lang_transaction.html, section 2.2).
            await connection.execute("BEGIN IMMEDIATE")
            tx = Transaction(connection)
            yield tx
            await tx.flush()
            await connection.execute("COMMIT")
        except BaseException as error:
            await self._roll_back(connection)
            if isinstance(error, sqlite3.Error) and (translated := unavailable(error)):
                raise translated from error
            raise

    @asynccontextmanager
    async def attached(self, path: Path, name: str) -> AsyncIterator[None]:
        """Have another database file under a schema name, for transactions in the block."""
        connection = self._opened()
        await connection.execute(f"ATTACH DATABASE ? AS {name}", (str(path),))
        try:
            yield
        finally:
            await connection.execute(f"DETACH DATABASE {name}")

    async def _roll_back(self, connection: aiosqlite.Connection) -> None:
        # FULL, IOERR, NOMEM and BUSY may have rolled back already, or may not have.
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                await connection.execute("ROLLBACK")

    async def _prepare(self) -> None:
        connection = self._opened()
        connection.row_factory = Row
        application_id, version, tables = await _identity(connection)
        is_new = version == 0 and tables == 0
        if not is_new:
            require_ours(self.path, application_id, version)
        for pragma in PRAGMAS:
            await connection.execute(pragma)
        if is_new:
            schema = resources.files("worker.store").joinpath("schema.sql").read_text()
            await connection.executescript(schema)

    def _opening_failed(self, error: sqlite3.Error) -> StoreUnavailable | StoreUnusable:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_NOTADB:
            return _not_ours(self.path)
        return StoreUnavailable(
            f"The database cannot be opened (path {self.path}: {error}).",
            "see that its directory exists, can be written by this user, and has space.",
        )


class Reader(Database):
    """A connection that can only read; works while the worker writes, and when it is stopped."""

    async def __aenter__(self) -> Self:
        """Open the file; raises `StoreUnusable` if it is missing or not ours."""
        uri = read_only_uri(Path(self.path))
        try:
            self._connection = await aiosqlite.connect(uri, uri=True, isolation_level=None)
            self._connection.row_factory = Row
            await self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
            application_id, version, _ = await _identity(self._connection)
            require_ours(self.path, application_id, version)
        except BaseException as error:
            await self.close()
            if isinstance(error, sqlite3.Error):
                raise StoreUnusable(
                    f"The database cannot be read (path {self.path}: {error}).",
                    "see that it is a database of the worker and that this user may read it.",
                ) from error
            raise
        return self


def read_only_uri(path: Path) -> str:
    """Name an existing file so that SQLite opens it for reading only."""
    if not path.is_file():
        raise StoreUnusable(
            f"There is no database (path {path}).",
            "start the worker once, or set WORKER_DATABASE.",
        )
    return f"{path.absolute().as_uri()}?mode=ro"


def require_sqlite(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> None:
    """Raise `StoreUnusable` if Python's SQLite is too old."""
    if version < OLDEST_SQLITE:
        raise StoreUnusable(
            f"Python's SQLite is too old ({'.'.join(map(str, version))}).",
            f"use a Python with SQLite {'.'.join(map(str, OLDEST_SQLITE))} or newer.",
        )


def require_ours(path: Path | str, application_id: int, version: int) -> None:
    """Raise `StoreUnusable` for a file of another program or of a newer schema."""
    if application_id != APPLICATION_ID:
        raise _not_ours(path)
    if version > SCHEMA_VERSION:
        raise StoreUnusable(
            f"The database was made by a newer worker (path {path}, schema {version}; this "
            f"worker knows {SCHEMA_VERSION}).",
            "run the newer worker, or set WORKER_DATABASE to another file.",
        )


def _not_ours(path: Path | str) -> StoreUnusable:
    return StoreUnusable(
        f"The file is not a database of the worker (path {path}).",
        "set WORKER_DATABASE to another file.",
    )


async def _identity(connection: aiosqlite.Connection) -> tuple[int, int, int]:
    rows = await connection.execute_fetchall(
        "SELECT (SELECT application_id FROM pragma_application_id), "
        "(SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM sqlite_schema)"
    )
    (row,) = rows
    return row[0], row[1], row[2]
