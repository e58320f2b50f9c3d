"""Checks that an open file is a database of the worker, and is not damaged."""

import sqlite3
from pathlib import Path

import aiosqlite

from worker.errors import StoreUnusable
from worker.store.failures import StoreFault
from worker.store.sqlite.faults import damaged, not_ours, primary_code
from worker.store.sqlite.file import cannot_open
from worker.store.sqlite.migrations import SCHEMA_VERSION

APPLICATION_ID = 0x70726A77

# quick_check reads the whole file, which takes 0.7 seconds per GiB from memory and several seconds
# from a cold disk. A standby promises to consume within five. In a larger file only the small
# tables are checked; a damaged page elsewhere stops the worker when it is first read.
CHECKED_BYTES = 512 * 1024 * 1024
SMALL_TABLES = ("sqlite_schema", "projections")

READ_HINT = "make sure that it is a database of the worker and that this user may read it."
COMPANIONS_HINT = (
    "make sure that this user may read it and the two files beside it whose names end in -wal and "
    "-shm: they have the group and mode of the database. If they are missing, start the worker, "
    "which creates them and leaves them there when it stops (docs/operate.md, 'Let another "
    "group read the file')."
)


def require_ours(path: Path | str, application_id: int, version: int) -> None:
    """Raise `StoreUnusable` for a file of another program or with a newer schema."""
    if application_id != APPLICATION_ID:
        raise not_ours(path)
    if version > SCHEMA_VERSION:
        raise StoreUnusable(
            f"The database was made by a newer worker (path {path}, schema {version}; this "
            f"worker knows {SCHEMA_VERSION}).",
            "run the newer worker, or set WORKER_DATABASE to another file.",
        )


async def identity(connection: aiosqlite.Connection, schema: str = "main") -> tuple[int, int, int]:
    """Return the application id, the schema version, and the number of tables."""
    found = []
    for sql in (
        f"PRAGMA {schema}.application_id",
        f"PRAGMA {schema}.user_version",
        f"SELECT count(*) FROM {schema}.sqlite_schema",  # noqa: S608 - our own names
    ):
        ((value,),) = await connection.execute_fetchall(sql)
        found.append(int(value))
    application_id, version, tables = found
    return application_id, version, tables


async def require_sound(connection: aiosqlite.Connection, path: Path | str) -> None:
    """Raise `StoreUnusable` if the file is found to be damaged."""
    ((size,),) = await connection.execute_fetchall(
        "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    )
    checks = ["PRAGMA quick_check(1)"]
    if size > CHECKED_BYTES:
        checks = [f"PRAGMA quick_check({table})" for table in SMALL_TABLES]
    for check in checks:
        ((found,),) = await connection.execute_fetchall(check)
        if found != "ok":
            raise damaged(path, found)


def opening_failed(path: Path | str, error: sqlite3.Error) -> StoreFault:
    """Return the error for a file that could not be opened, or turned out not to be ours."""
    code = primary_code(error)
    if code == sqlite3.SQLITE_NOTADB:
        return not_ours(path)
    if code == sqlite3.SQLITE_CORRUPT:
        return damaged(path, str(error))
    return cannot_open(path, error)


def reading_failed(path: Path | str, error: sqlite3.Error) -> StoreFault:
    """Return the error for a file that a reader could not open."""
    code = primary_code(error)
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return opening_failed(path, error)
    # SQLite reports READONLY if the WAL's shared memory is missing and cannot be created.
    is_companion_missing = code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    hint = COMPANIONS_HINT if is_companion_missing else READ_HINT
    return StoreUnusable(f"The database cannot be read (path {path}: {error}).", hint)
