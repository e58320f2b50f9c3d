"""The database as a file: who may read it, and whether it is still the same file.

Only the worker's user may read new files. A reader needs the database, its `-wal` and its `-shm`.
SQLite creates the last two with the mode of the first, and the worker leaves them when it stops. An
operator who wants other readers changes the group and mode (0640) of these files while
the worker is stopped, and those of the folder (2750).
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

from worker.errors import StoreUnavailable, StoreUnusable

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
# SQLite keeps such a database in its cache, and spills over into a temporary file.
SCRATCH = ""

COMPANIONS = ("-wal", "-shm", ".lock")
RESTORE = "docs/upgrade.md, 'Restore a backup', has the steps."
TOUCHED = "See docs/upgrade.md, 'When somebody has touched the files'."

Place = tuple[int, int]
"""Device and inode."""


def create_private(path: Path | str) -> None:
    """Create an empty file that only this user may read, and leave an existing file as it is.

    Raises `StoreUnavailable` if it cannot be created.
    """
    try:
        # O_EXCL, so that this never opens an existing file: closing a descriptor of a file that
        # SQLite has open would drop SQLite's locks (sqlite.org/howtocorrupt.html, section 2.2).
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE))
    except FileExistsError:
        pass
    except OSError as error:
        raise cannot_open(path, error.strerror) from error


def cannot_open(path: Path | str, cause: object) -> StoreUnavailable:
    """Return the error for a file that cannot be opened now, but perhaps later."""
    return StoreUnavailable(
        f"The database cannot be opened (path {path}: {cause}).",
        "make sure that its directory exists, is writable for this user, and has space.",
    )


def look_at(path: Path) -> os.stat_result:
    """Return the status of a file without opening it.

    Raises `StoreUnusable` if it does not exist, and `StoreUnavailable` if that cannot be found out.
    """
    try:
        return path.stat()
    except FileNotFoundError:
        raise is_gone(path) from None
    except OSError as error:
        raise cannot_open(path, error.strerror) from error


def place(found: os.stat_result) -> Place:
    """Return the identity of a file, which does not depend on its name."""
    return found.st_dev, found.st_ino


def require_one_name(path: Path) -> None:
    """Raise `StoreUnusable` for a file with hard links.

    SQLite names the WAL after the database, so each name would have its own WAL
    (sqlite.org/howtocorrupt.html, section 2.5) and its own lock.
    """
    found = look_at(path)
    if not stat.S_ISREG(found.st_mode):
        raise StoreUnusable(
            f"The database is not a file (path {path}).", "set WORKER_DATABASE to a file."
        )
    if (names := found.st_nlink) > 1:
        raise StoreUnusable(
            f"The database has {names} names (hard links) (path {path}).",
            f"remove the others; 'find {path.parent} -samefile {path}' lists those of this folder.",
        )


def is_gone(path: Path) -> StoreUnusable:
    """Return the error for a file that is no longer where it was opened."""
    if path.name.endswith(COMPANIONS):
        hint = "start the worker again: everything that it acked is in the database."
    else:
        hint = "put the original file back, or restore a backup; then start the worker again."
    return StoreUnusable(
        f"A file of the database was deleted, moved or replaced while it was open (path {path}).",
        f"{hint} {TOUCHED}",
    )


def rebuild_file(database: Path) -> Path:
    """Return the path of the file that a rebuild fills; a leftover file does no harm."""
    return database.with_name(database.name + ".rebuild")


def remove_rebuild_file(database: Path | str) -> None:
    """Remove the file of a rebuild, even of one that was killed; a missing file is no error."""
    # A file that cannot be removed now is removed the next time.
    with suppress(OSError):
        rebuild_file(Path(database)).unlink()
