"""What handlers' statements may do: read, and write rows of tables that are not the worker's own.

SQLite asks when it prepares a statement, which it does once for each text.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

# What the worker's own tables and views are called.
RESERVED = frozenset({"log", "streams", "messages", "projections", "file", "kinds", "filler"})
_READING = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    }
)
_WRITING = frozenset({sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE})


class Guard:
    """A connection's authorizer (sqlite.org/c3ref/set_authorizer.html): refuses while it is on."""

    def __init__(self) -> None:
        """Begin switched off."""
        self._is_on = False
        self._has_refused = False

    @contextmanager
    def guarding(self, sql: str) -> Iterator[None]:
        """Raise `ValueError` if the block runs this statement and it may not do what it does."""
        self._is_on, self._has_refused = True, False
        try:
            yield
        except sqlite3.DatabaseError as error:
            if self._has_refused:
                raise ValueError(
                    "A handler's statement must only read, and write rows of tables that are not "
                    f"the worker's own: {' '.join(sql.split())}"
                ) from error
            raise
        finally:
            self._is_on = False

    def authorize(self, action: int, table: str | None, *_: str | None) -> int:
        """Return SQLite's code for whether a statement may do this."""
        if not self._is_on or action in _READING or (action in _WRITING and _may_write(table)):
            return sqlite3.SQLITE_OK
        self._has_refused = True
        return sqlite3.SQLITE_DENY


def _may_write(table: str | None) -> bool:
    return table is not None and table not in RESERVED and not table.startswith("sqlite_")
