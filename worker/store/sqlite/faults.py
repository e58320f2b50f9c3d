"""What an SQLite error blames: a statement, the moment, or the file."""

import sqlite3
from pathlib import Path

from worker.errors import StoreUnavailable, StoreUnusable
from worker.store.failures import StoreFault

# Primary result codes (sqlite.org/rescode.html) that are about the disk or another process, not
# about the statement.
_MOMENT = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# After these, what the process believes about the file may be wrong. READONLY is one of them: if
# SQLite cannot open a file for writing, it opens it for reading, until it is closed.
_DOUBT = frozenset(
    {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PROTOCOL,
    }
)


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 for an error that Python itself raised."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def blames_statement(error: BaseException) -> bool:
    """Return whether the statement is at fault, not the moment, the file, or a lack of memory."""
    if isinstance(error, sqlite3.Error):
        return primary_code(error) not in _MOMENT | _DAMAGE
    return not isinstance(error, MemoryError)


def fault(error: sqlite3.Error, path: Path | str) -> StoreFault | None:
    """Return the error to raise if SQLite blames the moment or the file; None otherwise."""
    code = primary_code(error)
    if code in _DAMAGE:
        return damaged(path, f"{error.sqlite_errorname}: {error}")
    if code not in _MOMENT:
        return None
    return StoreUnavailable(
        f"The database cannot be used now (path {path}, {error.sqlite_errorname}: {error}).",
        "find out who locks it, and whether the disk is full, read-only or failing; "
        "'projection-worker check' looks for both.",
    )


def no_room(place: Path | str, cause: object) -> StoreUnavailable:
    """Return the error for a folder that has no room for the tables of a rebuild."""
    return StoreUnavailable(
        f"There is no room for the tables into which the log is folded (path {place}, {cause}).",
        "free as much space there as the projections' tables take. 'rebuild --verify' creates them "
        "in the folder that TMPDIR names, and 'rebuild' beside the database.",
    )


def written_by_another(path: Path | str) -> StoreUnavailable:
    """Return the error for a file in which another connection commits, too."""
    return StoreUnavailable(
        f"Another connection has committed to the database, or truncated its WAL (path {path}).",
        "the worker forgets what it remembered about the file and tries the batch again. Find the "
        "other process (fuser shows it): only one may write. 'projection-worker rebuild --verify' "
        "shows whether the rows are right.",
    )


def casts_doubt(error: sqlite3.Error) -> bool:
    """Return whether the file must be reopened before anything in it is trusted."""
    return primary_code(error) in _DOUBT


def damaged(path: Path | str, detail: str) -> StoreUnusable:
    """Return the error for a file that is ours but damaged, with a hint on how to repair it."""
    return StoreUnusable(
        f"The database is damaged (path {path}, {detail}).",
        # Debian builds sqlite3 without SQLITE_ENABLE_DBPAGE_VTAB, which .recover needs.
        "restore a backup; or save the log with the sqlite3 of sqlite.org (Debian's cannot): "
        "sqlite3 DAMAGED .recover | sqlite3 NEW, put NEW in its place without the old -wal and "
        "-shm, and run 'projection-worker rebuild'.",
    )


def incomplete(path: Path | str, error: sqlite3.Error) -> StoreUnusable:
    """Return the error for a file that lacks a table or column of the worker."""
    return StoreUnusable(
        f"The database lacks what the query needs (path {path}, {error}).",
        "start the worker once, which creates the tables; if it has already run, restore a backup.",
    )


def not_ours(path: Path | str) -> StoreUnusable:
    """Return the error for a file that belongs to another program."""
    return StoreUnusable(
        f"The file is not a database of the worker (path {path}).",
        "set WORKER_DATABASE to another file.",
    )
