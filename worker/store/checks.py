"""Whether an open file is a database of the worker, and whole."""

import sqlite3
from pathlib import Path

import aiosqlite

from worker.errors import StoreUnusable
from worker.store.faults import StoreFault, damaged, not_ours, primary_code
from worker.store.file import cannot_open
from worker.store.migrations import SCHEMA_VERSION

APPLICATION_ID = 0x70726A77

# quick_check reads the whole file: 0.7 seconds a GiB from memory, several from a cold disk, and a
# standby promises to consume within five. Of a larger file only the small tables are checked; a
# damaged page elsewhere is found when it is first read, and stops the worker then.
CHECKED_BYTES = 512 * 1024 * 1024
SMALL_TABLES = ("sqlite_schema", "projections")

READ_HINT = "see that it is a database of the worker and that this user may read it."
COMPANIONS_HINT = (
    "see that this user may read it, and the two files beside it with -wal and -shm at the end of "
    "their names: they have the group and mode of the database. If they are missing, start the "
    "worker, which makes them and leaves them there when it stops (docs/operate.md, 'Let another "
    "group read the file')."
)


def require_ours(path: Path | str, application_id: int, version: int) -> None:
    """Raise `StoreUnusable` for a file of another program or of a newer schema."""
    if application_id != APPLICATION_ID:
        raise not_ours(path)
    if version > SCHEMA_VERSION:
        raise StoreUnusable(
            f"The database was made by a newer worker (path {path}, schema {version}; this "
            f"worker knows {SCHEMA_VERSION}).",
            "run the newer worker, or set WORKER_DATABASE to another file.",
        )


async def identity(connection: aiosqlite.Connection, schema: str = "main") -> tuple[int, int, int]:
    """Give what tells whose file it is: application id, version, and the number of tables."""
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
    """Raise `StoreUnusable` for a file that is seen to be damaged."""
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
    """Give the error for a file that could not be opened, or turned out not to be one of ours."""
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
    # READONLY is what SQLite says if the WAL's shared memory is missing and cannot be made.
    is_of_a_companion = code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    hint = COMPANIONS_HINT if is_of_a_companion else READ_HINT
    return StoreUnusable(f"The database cannot be read (path {path}: {error}).", hint)
