"""Streams: each one's number, and its head, the position of its last message.

Streams are numbered as they appear, so that what is written now lies together in the file, however
random the ids of events are. The head follows from the log and is stored nowhere else: those of the
streams that live are remembered, the others are read from the log.
"""

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from worker.store.transaction import StoreTransaction

Position = tuple[int, str, str]

# Some 500 bytes each. A stream that has been forgotten costs a read of all its entries.
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


class Stream(NamedTuple):
    """One stream as of the last commit."""

    number: int
    head: Position | None
    """None for a stream without messages."""


class Streams:
    """What is known of streams as of the last commit; drop it when a transaction fails."""

    def __init__(self) -> None:
        """Know none."""
        # The one that was asked for longest ago comes first.
        self._remembered: dict[str, Stream] = {}
        self._last_number: int | None = None

    async def of(self, tx: StoreTransaction, event_ids: Iterable[str]) -> dict[str, Stream]:
        """Give the streams of these events; those that are new are opened."""
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
        """Note streams as they are now; forget those that nobody has asked for longest."""
        for event_id, stream in streams.items():
            self._remembered.pop(event_id, None)
            self._remembered[event_id] = stream
        while len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
