"""Streams in SQLite: each one's number, and what is remembered of them.

Streams are numbered in the order in which they first appear. So new entries lie together in the
file, even if the ids of events are random. The head is not stored: it follows from the log. Heads
of active streams are remembered; all others are read from the log.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Protocol

from worker.store.statements import Parameters, Row
from worker.store.streams import Snapshots, Stream

# Some 500 bytes each, and at most 2.5 KB with the longest ids. A stream that has been forgotten
# costs a read of all its entries.
REMEMBERED = 10_000
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


class Transaction(Protocol):
    """The part of a transaction in which streams are found and opened."""

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return all rows of a query."""

    def add(self, sql: str, rows: Iterable[Parameters] | None = None) -> None:
        """Add a statement to those that wait."""


class Streams:
    """What is known of streams since the last commit; drop it when a transaction fails."""

    def __init__(self) -> None:
        """Know none."""
        # In the order of use, the least recent first.
        self._remembered: dict[str, Stream] = {}
        self._snapshots = Snapshots()
        self._last_number: int | None = None

    async def of(self, tx: Transaction, event_ids: Iterable[str]) -> dict[str, Stream]:
        """Return the streams of these events; new ones are opened."""
        streams: dict[str, Stream] = {}
        others: list[str] = []
        for event_id in event_ids:
            if stream := self._remembered.pop(event_id, None):
                self._remembered[event_id] = stream
                snapshot = self._snapshots.get(event_id)
                streams[event_id] = stream._replace(snapshot=snapshot) if snapshot else stream
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
        self, tx: Transaction, event_ids: list[str], streams: dict[str, Stream]
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
            snapshot = stream.snapshot
            self._remembered[event_id] = stream._replace(snapshot=None) if snapshot else stream
            self._snapshots.note(event_id, snapshot)
        while len(self._remembered) > REMEMBERED:
            event_id = next(iter(self._remembered))
            del self._remembered[event_id]
            self._snapshots.note(event_id, None)
