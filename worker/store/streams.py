"""Streams: each one's head, the position of its last message, and remembered rows of some."""

from collections.abc import Iterable, Mapping
from sys import getsizeof
from typing import NamedTuple

from worker.store.log import Key, Position
from worker.store.tables import Values

SNAPSHOTS_BYTES = 8 * 1024 * 1024
SNAPSHOT_BYTES = 1024 * 1024
SMALLEST_BYTES = 1_000
# A longer tail is read from the log, for which the whole stream is searched.
TAIL_BYTES = 256 * 1024


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

    key: Key
    head: Position | None
    """None for a stream without messages."""
    snapshot: Snapshot | None = None
    """Set for some of the streams that had late messages."""
    messages: int = 0
    """How many messages the log holds for it, where the store counts them."""


class Snapshots:
    """The snapshots that are kept, within `SNAPSHOTS_BYTES`."""

    def __init__(self) -> None:
        """Keep none."""
        self._kept: dict[str, tuple[Snapshot, int]] = {}
        """Event -> its snapshot, and the messages of the stream; the oldest note first."""
        self._bytes = 0

    def get(self, event_id: str, messages: int = 0) -> Snapshot | None:
        """Return the snapshot of an event; None if none was noted with this count of messages."""
        snapshot, noted = self._kept.get(event_id, (None, 0))
        return snapshot if noted == messages else None

    def note(self, event_id: str, snapshot: Snapshot | None, messages: int = 0) -> None:
        """Keep this one, or none; drop the oldest ones for which there is no room."""
        if before := self._kept.pop(event_id, None):
            self._bytes -= before[0].bytes
        if snapshot is not None:
            self._kept[event_id] = (snapshot, messages)
            self._bytes += snapshot.bytes
        while self._bytes > SNAPSHOTS_BYTES:
            self.note(next(iter(self._kept)), None)
