"""Whom an error of SQLite blames: a statement, the moment, or the file."""

import sqlite3
from pathlib import Path

from worker.errors import StoreUnavailable, StoreUnusable

StoreFault = StoreUnavailable | StoreUnusable
# Primary result codes (sqlite.org/rescode.html) that say something about the disk or another
# process, and nothing about the statement.
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
# After these, what the process believes of the file may not be so. READONLY is one of them: a
# file that could not be opened for writing is opened for reading, and stays so until it is closed.
_DOUBT = frozenset(
    {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PROTOCOL,
    }
)


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 for an error that Python itself has raised."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def blames_statement(error: Exception) -> bool:
    """Return whether the statement is at fault: neither the moment, nor the file, nor memory."""
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
        "see who locks it, and whether the disk is full, read-only or failing; "
        "'projection-worker check' looks for both.",
    )


def no_room(place: Path | str, cause: object) -> StoreUnavailable:
    """Return the error for a folder that has no room for the tables of a rebuild."""
    return StoreUnavailable(
        f"There is no room for the tables into which the log is folded (path {place}, {cause}).",
        "make room there for as much as the projections' tables take. 'rebuild --verify' makes "
        "them in the folder that TMPDIR names, and 'rebuild' beside the database.",
    )


def out_of_memory(path: Path | str, cause: str = "out of memory") -> StoreUnavailable:
    """Return the error for a statement, or a handler, for which there was no memory."""
    return StoreUnavailable(
        f"The database cannot be used now (path {path}, {cause}).",
        "give the worker more memory, or set WORKER_BATCH_SIZE lower.",
    )


def written_by_another(path: Path | str) -> StoreUnavailable:
    """Return the error for a file in which not only this worker commits."""
    return StoreUnavailable(
        f"Another connection has committed to the database, or truncated its WAL (path {path}).",
        "what the worker remembered of the file is dropped, and the batch is tried again; find out "
        "which process it is (fuser shows it): only one may write. 'projection-worker rebuild "
        "--verify' tells whether the rows are right.",
    )


def casts_doubt(error: sqlite3.Error) -> bool:
    """Return whether the file must be closed and opened again before anything is believed."""
    return primary_code(error) in _DOUBT


def damaged(path: Path | str, detail: str) -> StoreUnusable:
    """Return the error for a file that is ours and broken; its hint is the way out."""
    return StoreUnusable(
        f"The database is damaged (path {path}, {detail}).",
        # Debian's sqlite3 is built without what its .recover needs (SQLITE_ENABLE_DBPAGE_VTAB).
        "restore a backup; or save the log with the sqlite3 of sqlite.org (Debian's cannot): "
        "sqlite3 DAMAGED .recover | sqlite3 NEW, put NEW in its place without the old -wal and "
        "-shm, and run 'projection-worker rebuild'.",
    )


def incomplete(path: Path | str, error: sqlite3.Error) -> StoreUnusable:
    """Return the error for a file that lacks what every database of the worker has."""
    return StoreUnusable(
        f"The database does not hold what is asked of it (path {path}, {error}).",
        "start the worker once, which makes the tables; if it has run already, restore a backup.",
    )


def not_ours(path: Path | str) -> StoreUnusable:
    """Return the error for a file of another program."""
    return StoreUnusable(
        f"The file is not a database of the worker (path {path}).",
        "set WORKER_DATABASE to another file.",
    )
