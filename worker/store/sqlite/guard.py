"""What handlers' statements may do: read any table, and write rows of the projections' tables.

SQLite asks the guard when it prepares a statement, which happens once for each text.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from worker.store.tables import RESERVED

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
    """A connection's authorizer (sqlite.org/c3ref/set_authorizer.html); refuses only while on."""

    def __init__(self) -> None:
        """Start switched off."""
        self._is_on = False
        self._has_refused = False

    @contextmanager
    def guarding(self, sql: str) -> Iterator[None]:
        """Raise `ValueError` if the block runs this statement and it does what it may not do."""
        self._is_on, self._has_refused = True, False
        try:
            yield
        except sqlite3.DatabaseError as error:
            if self._has_refused:
                raise ValueError(
                    "A handler's statement may only read, and write rows of tables that are not "
                    f"the worker's own: {' '.join(sql.split())}"
                ) from error
            raise
        finally:
            self._is_on = False

    def authorize(self, action: int, table: str | None, *_: str | None) -> int:
        """Return SQLite's code that allows or denies an action of a statement."""
        if not self._is_on or action in _READING or (action in _WRITING and _may_write(table)):
            return sqlite3.SQLITE_OK
        self._has_refused = True
        return sqlite3.SQLITE_DENY


def _may_write(table: str | None) -> bool:
    return table is not None and table not in RESERVED and not table.startswith("sqlite_")
