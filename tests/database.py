"""The contents of the worker's database, read as any SQLite client reads it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.oracle import COLUMNS, Row

ROWS = f"SELECT {', '.join(COLUMNS)} FROM events ORDER BY event_id"
LOG = "SELECT event_id, id FROM messages ORDER BY event_id, id"


def query(database: Path, sql: str) -> list[Row]:
    """Run a query through a read-only connection."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def rows(database: Path) -> list[Row]:
    """Return the events, as `tests.oracle.expected_rows` does."""
    return query(database, ROWS)


def log(database: Path) -> list[Row]:
    """Return (event_id, id) of every message in the log."""
    return query(database, LOG)


def count_log(database: Path) -> int:
    """Return the number of committed messages; 0 before there is a log."""
    try:
        return int(query(database, "SELECT count(*) FROM log")[0][0])
    except sqlite3.OperationalError:
        return 0


def change(database: Path, sql: str) -> None:
    """Change the file behind the worker's back."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(sql)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold the file's write lock during the block, as another program might."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
