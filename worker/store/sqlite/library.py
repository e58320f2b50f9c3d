"""Which SQLite this process uses, and whether its commits are safe.

The package pysqlite3 is Python's sqlite3 module with a newer SQLite inside. Importing this module
puts it in place of the standard one, so that aiosqlite, handlers and libraries all use it.
"""

import importlib
import sys
from contextlib import suppress

from worker.errors import StoreUnusable

# Not if sqlite3 has already been imported. A process that opens one file with two copies of SQLite
# loses its locks: closing the file in one copy drops the locks of the other
# (sqlite.org/howtocorrupt.html, section 2.2.1).
if "sqlite3" not in sys.modules:
    with suppress(ModuleNotFoundError):
        sys.modules["sqlite3"] = importlib.import_module("pysqlite3")
        sys.modules["sqlite3.dbapi2"] = importlib.import_module("pysqlite3.dbapi2")

import sqlite3

Version = tuple[int, int, int]
SQLITE_VERSION: Version = sqlite3.sqlite_version_info


def has_wal_reset_bug(version: Version) -> bool:
    """Return whether a checkpoint that races with a reset of the WAL may lose commits.

    SQLite 3.7.0 to 3.51.2 does, with two or more connections; fixed in 3.51.3, 3.50.7 and 3.44.6
    (sqlite.org/wal.html, "The WAL-Reset Bug").
    """
    if (3, 44, 6) <= version < (3, 45, 0) or (3, 50, 7) <= version < (3, 51, 0):
        return False
    return (3, 7, 0) <= version < (3, 51, 3)


def require_safe_commits(version: Version = SQLITE_VERSION) -> None:
    """Raise `StoreUnusable` if a writer may lose commits with this SQLite."""
    if has_wal_reset_bug(version):
        raise StoreUnusable(
            f"SQLite {dotted(version)} can lose commits (sqlite.org/wal.html#walresetbug).",
            "install the package pysqlite3, and import worker.store before sqlite3; or use a "
            "Python with SQLite 3.51.3 or newer (3.50.7 and 3.44.6 are fixed as well).",
        )


def dotted(version: Version = SQLITE_VERSION) -> str:
    """Return a version in SQLite's notation."""
    return ".".join(map(str, version))
