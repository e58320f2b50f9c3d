"""Writes the worker's file without the worker: for the disk's limit, and for large logs.

The table and the statements of the log are the worker's own. Each row is written once in a batch,
in its final state, which is less work than the worker does.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.traffic import Sent
from tests.oracle import COLUMNS, Row, step
from worker.projections import load
from worker.rebuild import create_tables
from worker.settings import Settings
from worker.store.sqlite import log, streams
from worker.store.sqlite.opening import CHECKPOINT_PAGES_IN_BULK
from worker.store.sqlite.store import Writer

# The same as the worker's.
BATCH: int = Settings.model_fields["batch_size"].default
APPENDED_AT = "2026-01-01T00:00:00.000000Z"
CHANGING = ("status", "started_at", "completed_at", "updated_at")
# The names are the oracle's.
PUT = (
    f"INSERT INTO events ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "
    f"ON CONFLICT (event_id) DO UPDATE SET {', '.join(f'{n} = excluded.{n}' for n in CHANGING)}"
)


class Batch(NamedTuple):
    """What one transaction writes, each part in the order of its table's key."""

    streams: list[tuple[int, str]]
    """The new streams: number and event."""
    log: list[tuple[object, ...]]
    rows: list[Row]


class Fold:
    """The rows of all messages so far; returns what is to be written of each batch."""

    def __init__(self) -> None:
        """Begin without messages."""
        self._rows: dict[str, dict[str, Any]] = {}
        self._numbers: dict[str, int] = {}

    def batches(self, messages: Sequence[Sent], size: int = BATCH) -> Iterator[Batch]:
        """Fold the next messages in batches of this size."""
        for start in range(0, len(messages), size):
            yield self.batch(messages[start : start + size])

    def batch(self, messages: Sequence[Sent]) -> Batch:
        """Fold the next messages, which are in the order of their streams."""
        opened: list[tuple[int, str]] = []
        for message in messages:
            if message.event_id not in self._numbers:
                self._numbers[message.event_id] = len(self._numbers) + 1
                opened.append((len(self._numbers), message.event_id))
            step(self._rows.setdefault(message.event_id, {}), message.document)
        event_ids = sorted({message.event_id for message in messages})
        rows = (self._rows[event_id] for event_id in event_ids)
        return Batch(
            streams=opened,
            log=sorted(_entry(self._numbers[message.event_id], message) for message in messages),
            rows=[tuple(row[column] for column in COLUMNS) for row in rows if row],
        )


def _entry(number: int, message: Sent) -> tuple[object, ...]:
    return (
        number,
        message.id,
        message.sequence,
        message.occurred_at,
        message.kind,
        False,
        APPENDED_AT,
        message.body,
    )


async def create(database: Path) -> None:
    """Create an empty file, as the worker does at its first start."""
    async with Writer(database) as writer:
        await create_tables(writer, load())


def connect(database: Path, synchronous: str = "FULL") -> sqlite3.Connection:
    """Open a file as the worker does, except for the safety of its commits."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA cache_size = -8192")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES_IN_BULK}")
    return connection


def write(connection: sqlite3.Connection, batches: Iterable[Batch]) -> None:
    """Write each batch in its own transaction."""
    for batch in batches:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(streams.OPEN, batch.streams)
        connection.executemany(log.APPEND, batch.log)
        connection.executemany(PUT, batch.rows)
        connection.execute("COMMIT")
