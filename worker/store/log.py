"""The log: every accepted message, in the transaction of its effect.

It is the inbox that finds duplicates, the order of each stream, the source of a rebuild and the
history that people read. This module says what a log holds, and how it is read in bounded pieces;
each store brings its own queries.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import NamedTuple

from worker.store.statements import Parameters, Row

Key = int | str
"""What a store calls a stream: a number, or the id of its event."""
Position = tuple[int, str, str]
"""A message's place in its stream: sequence, occurred_at, id."""
BEFORE_ALL: Position = (-1, "", "")
# Plain types: sqlite3 has to look for an adapter for a named tuple or a bool.
Entry = tuple[Key, str, int, str, str, int, str, str]
"""One message: stream, id, sequence, occurred_at, kind, is_late, appended_at, body."""
MessageKey = tuple[Key, str]
"""A message's stream and its id."""
Piece = dict[Key, list[str]]
"""The bodies of some messages, by stream."""

# Each message costs some time and memory beside that of its characters.
MESSAGE_SIZE = 2_000
# What the event loop decodes without a turn for other tasks: some 10 ms, or one message.
PIECE_SIZE = 1024 * 1024
# Some 300 bytes each. Every query for the next ones searches the whole stream.
PLACES_AT_ONCE = 25_000

# What the readers of the log page through, in either store.
NEXT_STREAMS = "SELECT event_id FROM streams WHERE event_id > ? ORDER BY event_id LIMIT ?"
STREAMS_AT_ONCE = 500
SIZES = """
    SELECT event_id, sum(length(body)) + count(*) * ? FROM messages
    WHERE event_id >= ? AND event_id <= ? GROUP BY event_id ORDER BY event_id
"""
ENTRIES = """
    SELECT event_id, id, appended_at, body FROM messages WHERE event_id >= ? AND event_id <= ?
    ORDER BY event_id, sequence, occurred_at, id
"""

COUNT = "SELECT count(*) FROM messages WHERE event_id = ?"


class Logged(NamedTuple):
    """A message as the log holds it."""

    event_id: str
    id: str
    appended_at: str
    body: str


class Log(ABC):
    """Reads the log, in a database or in one of its transactions."""

    @abstractmethod
    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return all rows of a query."""

    async def count(self, event_id: str) -> int:
        """Return the number of messages of an event."""
        ((messages,),) = await self.fetch_all(COUNT, (event_id,))
        return int(messages)

    async def pieces(self, starts: Mapping[Key, Position]) -> AsyncIterator[Piece]:
        """Read the messages of streams that come after a position of each, in bounded pieces.

        A piece holds several streams, each whole, or a part of one that is too long for a piece.
        The parts of a stream come in the order of position; the bodies within a piece in any order.
        """
        whole: dict[Key, Position] = {}
        room = PIECE_SIZE
        for stream, size in await self._sizes(starts):
            if size > PIECE_SIZE:
                async for ids in self._ids(stream, starts[stream]):
                    yield {stream: await self._bodies_by_id(stream, ids)}
                continue
            if size > room:
                yield await self._bodies(whole)
                whole, room = {}, PIECE_SIZE
            whole[stream] = starts[stream]
            room -= size
        if whole:
            yield await self._bodies(whole)

    async def entries(self) -> AsyncIterator[list[Logged]]:
        """Read the whole log, stream by stream, each in the order of position, in bounded pieces.

        Streams that are opened meanwhile may be missing.
        """
        last = ""
        while streams := await self.fetch_all(NEXT_STREAMS, (last, STREAMS_AT_ONCE)):
            first, last = streams[0][0], streams[-1][0]
            sizes = await self.fetch_all(SIZES, (MESSAGE_SIZE, first, last))
            for group in _grouped([(row[0], int(row[1])) for row in sizes]):
                if isinstance(group, str):
                    async for rows in self.history(group):
                        yield [Logged(group, row[0], row[5], row[6]) for row in rows]
                else:
                    yield [Logged(*row) for row in await self.fetch_all(ENTRIES, group)]

    async def history(self, event_id: str) -> AsyncIterator[list[Row]]:
        """Read one stream in the order of position, as people read it, in bounded pieces."""
        stream = await self._key_of(event_id)
        if stream is not None:
            async for ids in self._ids(stream, BEFORE_ALL):
                yield await self._history_by_id(stream, ids)

    async def _ids(self, stream: Key, start: Position) -> AsyncIterator[list[str]]:
        """Return the ids of one stream in the order of position, a piece of them at a time."""
        while places := await self._places(stream, start, PLACES_AT_ONCE):
            ids: list[str] = []
            room = PIECE_SIZE
            for _, _, message_id, size in places:
                if ids and size > room:
                    yield ids
                    ids, room = [], PIECE_SIZE
                ids.append(message_id)
                room -= size
            yield ids
            sequence, occurred_at, message_id, _ = places[-1]
            start = (sequence, occurred_at, message_id)

    @abstractmethod
    async def _sizes(self, starts: Mapping[Key, Position]) -> list[tuple[Key, int]]:
        """Return the size of what follows each position, with `MESSAGE_SIZE` for each message.

        A stream with nothing after its position is missing.
        """

    @abstractmethod
    async def _bodies(self, starts: Mapping[Key, Position]) -> Piece:
        """Return the bodies of all messages that follow the positions."""

    @abstractmethod
    async def _places(
        self, stream: Key, start: Position, limit: int
    ) -> list[tuple[int, str, str, int]]:
        """Return position and size of the next messages of a stream, in the order of position."""

    @abstractmethod
    async def _bodies_by_id(self, stream: Key, ids: Sequence[str]) -> list[str]:
        """Return the bodies of these messages of a stream."""

    @abstractmethod
    async def _history_by_id(self, stream: Key, ids: Sequence[str]) -> list[Row]:
        """Return these messages of a stream in the order of position.

        The columns are those of an `Entry` without the stream.
        """

    @abstractmethod
    async def _key_of(self, event_id: str) -> Key | None:
        """Return the key of an event's stream; None if it has none."""


def _grouped(sizes: Sequence[tuple[str, int]]) -> Iterator[tuple[str, str] | str]:
    """Yield the first and the last of streams that fit into a piece, or one that does not."""
    group: tuple[str, str] | None = None
    room = PIECE_SIZE
    for event_id, size in sizes:
        # A group is a range, so no stream between its first and its last may be left out.
        if group and size > room:
            yield group
            group, room = None, PIECE_SIZE
        if size > PIECE_SIZE:
            yield event_id
        else:
            group = (group[0] if group else event_id, event_id)
            room -= size
    if group:
        yield group
