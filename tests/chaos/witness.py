"""A second count of appends: a trigger in the worker's file notes each row of the log.

The trigger runs in the transaction that appends the row, so it stays correct through every crash.
Its table has no key, so a message that was appended twice would be there twice.
"""

import sqlite3
from pathlib import Path

from tests.database import change, query

INSTALL = (
    "CREATE TABLE chaos_appends (stream INTEGER NOT NULL, id TEXT NOT NULL)",
    "CREATE TRIGGER chaos_append AFTER INSERT ON log "
    "BEGIN INSERT INTO chaos_appends VALUES (new.stream, new.id); END",
)


def install(database: Path) -> None:
    """Begin to count, in a file that has the worker's tables."""
    for statement in INSTALL:
        change(database, statement)


def appended(database: Path) -> int:
    """Return the number of committed appends, from the end of the table only."""
    try:
        return int(query(database, "SELECT max(rowid) FROM chaos_appends")[0][0] or 0)
    except sqlite3.OperationalError:
        return 0


def appended_twice(database: Path) -> int:
    """Return the number of messages that were appended more than once."""
    again = "SELECT 1 FROM chaos_appends GROUP BY stream, id HAVING count(*) > 1"
    return len(query(database, again))
