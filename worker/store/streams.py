"""Streams: each one's number, and its head, the position of its last message.

Streams are numbered in the order in which they first appear. So new entries lie together in the
file, even if the ids of events are random. The head is not stored: it follows from the log. Heads
of active streams are remembered; all others are read from the log.
"""

import json
from collections.abc import Iterable, Mapping
from sys import getsizeof
from typing import NamedTuple

from worker.store.log import Position
from worker.store.tables import Values
from worker.store.transaction import StoreTransaction

# Some 500 bytes each, and at most 2.5 KB with the longest ids. A stream that has been forgotten
# costs a read of all its entries.
REMEMBERED = 10_000
SNAPSHOTS_BYTES = 8 * 1024 * 1024
SNAPSHOT_BYTES = 1024 * 1024
SMALLEST_BYTES = 1_000
# A longer tail is read from the log, for which the whole stream is searched.
TAIL_BYTES = 256 * 1024
FIND = """
    SELECT streams.event_id, streams.number, log.sequence, log.occurred_at, log.id
    FROM json_each(?) AS wanted
    JOIN streams ON streams.event_id = wanted.value
    LEFT JOIN log ON log.stream = streams.number AND log.id = (
        SELECT id FROM log WHERE stream = streams.number
        ORDER BY sequence DESC, occurred_at DESC, id DESC LIMIT 1
    )
"""
LAST_NUMBER = "SELECT coalesce(max(number), 0) FROM streams"
OPEN = "INSERT INTO streams (number, event_id) VALUES (?, ?)"


class Snapshot(NamedTuple):
    """A stream's rows after all messages up to a position."""

    position: Position
    rows: Mapping[str, Values]
    """Table -> row; a table is missing where the stream has no row in it."""
    tail: tuple[str, ...] | None
    """The bodies of all messages after the position, in any order; None if only the log has them.
    """
    rows_bytes: int
    tail_bytes: int

    @classmethod
    def of(cls, position: Position, rows: Mapping[str, Values]) -> "Snapshot | None":
        """Return a snapshot that nothing follows yet; None if it would be too large to keep."""
        rows_bytes = sum(getsizeof(value) for values in rows.values() for value in values)
        if rows_bytes > SNAPSHOT_BYTES:
            return None
        return cls(position, rows, (), rows_bytes, 0)

    def followed_by(self, bodies: Iterable[str]) -> "Snapshot":
        """Return the snapshot with more messages in its tail."""
        if self.tail is None:
            return self
        tail = (*self.tail, *bodies)
        tail_bytes = sum(map(getsizeof, tail))
        if tail_bytes > TAIL_BYTES:
            return self._replace(tail=None, tail_bytes=0)
        return self._replace(tail=tail, tail_bytes=tail_bytes)

    @property
    def bytes(self) -> int:
        """The memory that it takes, roughly."""
        return self.rows_bytes + self.tail_bytes + SMALLEST_BYTES


class Stream(NamedTuple):
    """One stream as of the last commit."""

    number: int
    head: Position | None
    """None for a stream without messages."""
    snapshot: Snapshot | None = None
    """Set for some of the streams that had late messages."""


class Streams:
    """What is known of streams since the last commit; drop it when a transaction fails."""

    def __init__(self) -> None:
        """Know none."""
        # In the order of use, the least recent first.
        self._remembered: dict[str, Stream] = {}
        self._snapshots: dict[str, int] = {}
        """Event -> the size of its snapshot, in the order of noting, the oldest first."""
        self._snapshots_bytes = 0
        self._last_number: int | None = None

    async def of(self, tx: StoreTransaction, event_ids: Iterable[str]) -> dict[str, Stream]:
        """Return the streams of these events; new ones are opened."""
        streams: dict[str, Stream] = {}
        others: list[str] = []
        for event_id in event_ids:
            if stream := self._remembered.pop(event_id, None):
                streams[event_id] = self._remembered[event_id] = stream
            else:
                others.append(event_id)
        if others:
            rows = await tx.fetch_all(FIND, (json.dumps(others, ensure_ascii=False),))
            for event_id, number, sequence, occurred_at, message_id in rows:
                head = None if sequence is None else (sequence, occurred_at, message_id)
                streams[event_id] = Stream(number, head)
            await self._open(tx, [each for each in others if each not in streams], streams)
        return streams

    async def _open(
        self, tx: StoreTransaction, event_ids: list[str], streams: dict[str, Stream]
    ) -> None:
        if not event_ids:
            return
        if self._last_number is None:
            ((self._last_number,),) = await tx.fetch_all(LAST_NUMBER)
        numbered = list(enumerate(event_ids, self._last_number + 1))
        self._last_number += len(numbered)
        tx.add(OPEN, numbered)
        streams.update((event_id, Stream(number, None)) for number, event_id in numbered)

    def remember(self, streams: Mapping[str, Stream]) -> None:
        """Note streams as they are now; forget the least recently used."""
        for event_id, stream in streams.items():
            self._remembered.pop(event_id, None)
            self._remembered[event_id] = stream
            if stream.snapshot is not None or event_id in self._snapshots:
                self._note_snapshot(event_id, stream.snapshot)
        while len(self._remembered) > REMEMBERED:
            event_id = next(iter(self._remembered))
            del self._remembered[event_id]
            self._note_snapshot(event_id, None)
        while self._snapshots_bytes > SNAPSHOTS_BYTES:
            event_id = next(iter(self._snapshots))
            self._remembered[event_id] = self._remembered[event_id]._replace(snapshot=None)
            self._note_snapshot(event_id, None)

    def _note_snapshot(self, event_id: str, snapshot: Snapshot | None) -> None:
        self._snapshots_bytes -= self._snapshots.pop(event_id, 0)
        if snapshot is not None:
            self._snapshots[event_id] = snapshot.bytes
            self._snapshots_bytes += snapshot.bytes
