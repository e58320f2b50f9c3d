"""The projections' tables: what a store knows of them, and the statements that fit all of them.

It knows the tables' names and CREATE statements. Of their columns it knows only `event_id`.
"""

import re
from collections.abc import Iterable, Mapping

from worker.errors import StoreUnusable
from worker.store.statements import Value

Schema = Mapping[str, tuple[str, ...]]
"""Table -> its CREATE statements."""
Values = tuple[Value, ...]
"""A row: the values of all columns of its table, in order."""

# The names of the worker's own tables and views, in either store.
RESERVED = frozenset(
    {"log", "streams", "messages", "projections", "file", "kinds", "filler", "store", "consumption"}
)
# Excludes names that SQLite or PostgreSQL reserves, and names that would hide a function which the
# worker's own queries use.
_NAME = re.compile(r"(?!sqlite_|pg_|pragma_|json_(each|tree)$)[a-z][a-z0-9_]*")

# Every name in these statements comes from a registered projection, never from input.
REMOVAL = "DELETE FROM {} WHERE event_id = ?"
INSERTION = "INSERT INTO {} VALUES ({})"
ROWS = "SELECT * FROM {} WHERE event_id = ?"


def may_be_named(table: object) -> bool:
    """Return whether a projection's table may have this name."""
    return isinstance(table, str) and _NAME.fullmatch(table) is not None and table not in RESERVED


def require_names(noted: Iterable[object], named: str) -> None:
    """Raise `StoreUnusable` if a database notes a table name that no projection can have."""
    for table in noted:
        if not may_be_named(table):
            raise StoreUnusable(
                f"The database notes a projection with the table {table!r}, a name that no "
                f"projection may use ({named}).",
                "restore a backup, or run the version of the worker that wrote the note.",
            )


def insertion(table: str, columns: int) -> str:
    """Return the statement that inserts a row into a table."""
    return INSERTION.format(table, ", ".join("?" * columns))


def quoted(name: str) -> str:
    """Return a name quoted for use in a statement."""
    return '"' + name.replace('"', '""') + '"'


class SchemaMistake(Exception):
    """A table that the worker cannot create or maintain: what is wrong, and what to do about it."""

    def __init__(self, table: str, found: str, hint: str) -> None:
        """Name the table, so that the caller can say where it was registered."""
        super().__init__(f"Table {table!r} {found}")
        self.table = table
        self.hint = hint
