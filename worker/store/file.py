"""The database as a file among files: who may read it, and whether it is still the same one.

New files are for the worker's user alone. SQLite gives `-wal` and `-shm` the mode of the database,
and whoever reads needs all three: an operator who wants other readers changes the mode of the
database (0640) while the worker is stopped, and the group and mode of its folder (2750).
"""

import os
from contextlib import suppress
from pathlib import Path

from worker.errors import StoreUnavailable, StoreUnusable

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
IN_MEMORY = ":memory:"

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


def place_of(path: Path | str) -> Place | None:
    """Say which file this path names now; None for a database in memory."""
    if path == IN_MEMORY:
        return None
    try:
        found = os.stat(path)  # noqa: PTH116 - a path may be text
    except FileNotFoundError:
        raise _is_gone(path) from None
    except OSError as error:
        raise cannot_open(path, error.strerror) from error
    return found.st_dev, found.st_ino


def require_place(path: Path | str, place: Place | None) -> None:
    """Raise `StoreUnusable` if the path names another file than it did, or none.

    Asks by name, and opens nothing.
    """
    if place_of(path) != place:
        raise _is_gone(path)


def _is_gone(path: Path | str) -> StoreUnusable:
    return StoreUnusable(
        f"The database was deleted, moved or replaced while it was open (path {path}).",
        "put the file that was there back, beside its -wal and -shm, or restore a backup; then "
        "start the worker again.",
    )


def rebuild_file(database: Path) -> Path:
    """Name the file that a rebuild fills; it is in nobody's way if it is left behind."""
    return database.with_name(database.name + ".rebuild")


def remove_rebuild_file(database: Path | str) -> None:
    """Remove what a rebuild has made, also one that was killed; none is no error."""
    # What cannot be removed now is removed the next time.
    with suppress(OSError):
        rebuild_file(Path(database)).unlink()
