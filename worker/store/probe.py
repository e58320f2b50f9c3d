"""What `check` and the metrics ask SQLite and the disk; makes nothing."""

import os
import shutil
import sqlite3
from pathlib import Path

SQLITE_VERSION = sqlite3.sqlite_version_info


def has_wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Tell whether a checkpoint that races with a reset of the WAL may lose commits.

    In 3.7.0 to 3.51.2, with two or more connections; mended in 3.51.3, 3.50.7 and 3.44.6
    (sqlite.org/wal.html, "The WAL-Reset Bug").
    """
    if (3, 44, 6) <= version < (3, 45, 0) or (3, 50, 7) <= version < (3, 51, 0):
        return False
    return (3, 7, 0) <= version < (3, 51, 3)


def is_file(database: Path) -> bool:
    """Tell whether the database is there."""
    return database.is_file()


def existing_folder(database: Path) -> Path:
    """Give the database's folder, or the nearest one above it that exists."""
    folder = database.absolute().parent
    while not folder.exists():
        folder = folder.parent
    return folder


def can_write(folder: Path) -> bool:
    """Tell whether this user may make files in a folder."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def free_bytes(folder: Path) -> int:
    """Give the space that is left for this user."""
    return shutil.disk_usage(folder).free


def wal_bytes(database: Path) -> int:
    """Give the size of the database's WAL; 0 without one."""
    try:
        return database.with_name(database.name + "-wal").stat().st_size
    except OSError:
        return 0
