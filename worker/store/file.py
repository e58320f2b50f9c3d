"""The database as a file among files: who may read it, and whether it is still the same one.

New files are for the worker's user alone. Whoever reads needs the database, its `-wal` and its
`-shm`. SQLite makes the last two with the mode of the first, and the worker leaves them when it
stops. An operator who wants other readers changes the group and mode (0640) of these files while
the worker is stopped, and those of the folder (2750).
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

from worker.errors import StoreUnavailable, StoreUnusable

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
# SQLite keeps such a database in its cache, and puts what exceeds that into a temporary file.
SCRATCH = ""

COMPANIONS = ("-wal", "-shm", ".lock")
RESTORE = "docs/upgrade.md, 'Restore a backup', has the steps."
TOUCHED = "See docs/upgrade.md, 'When somebody has touched the files'."

Place = tuple[int, int]
"""Device and inode."""


def create_private(path: Path | str) -> None:
    """Make an empty file that only this user may read; one that is there is left as it is.

    Raises `StoreUnavailable` if it cannot be made.
    """
    try:
        # Only ever a new file: to close a descriptor of one that SQLite has open would drop
        # SQLite's locks on it (sqlite.org/howtocorrupt.html, section 2.2).
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE))
    except FileExistsError:
        pass
    except OSError as error:
        raise cannot_open(path, error.strerror) from error


def cannot_open(path: Path | str, cause: object) -> StoreUnavailable:
    """Give the error for a file that cannot be opened, and may be later."""
    return StoreUnavailable(
        f"The database cannot be opened (path {path}: {cause}).",
        "see that its directory exists, can be written by this user, and has space.",
    )


def look_at(path: Path) -> os.stat_result:
    """Ask for a file by its name, which opens nothing.

    Raises `StoreUnusable` if there is none, and `StoreUnavailable` if nobody can tell.
    """
    try:
        return path.stat()
    except FileNotFoundError:
        raise is_gone(path) from None
    except OSError as error:
        raise cannot_open(path, error.strerror) from error


def place(found: os.stat_result) -> Place:
    """Return which file it is, whatever its names."""
    return found.st_dev, found.st_ino


def require_one_name(path: Path) -> None:
    """Raise `StoreUnusable` for a file with hard links.

    SQLite names the WAL after the database, so each name would have a WAL of its own
    (sqlite.org/howtocorrupt.html, section 2.5), and a lock of its own.
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
        hint = "start the worker again: it has moved all that it acked into the database."
    else:
        hint = "put the file that was there back, or restore a backup; then start the worker again."
    return StoreUnusable(
        f"A file of the database was deleted, moved or replaced while it was open (path {path}).",
        f"{hint} {TOUCHED}",
    )


def rebuild_file(database: Path) -> Path:
    """Name the file that a rebuild fills; it is in nobody's way if it is left behind."""
    return database.with_name(database.name + ".rebuild")


def remove_rebuild_file(database: Path | str) -> None:
    """Remove what a rebuild has made, also one that was killed; none is no error."""
    # What cannot be removed now is removed the next time.
    with suppress(OSError):
        rebuild_file(Path(database)).unlink()
