"""The log: every accepted message, in the transaction of its effect.

One table is the inbox that finds duplicates, the order of each stream, the source of a rebuild and
the history that people read. Knows no kinds: an entry is a stream, a position and a body.
"""

import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Protocol

from worker.store.connection import Database
from worker.store.statements import Parameters
from worker.store.transaction import Row, StoreTransaction

Position = tuple[int, str, str]
"""A message's place in its stream: sequence, occurred_at, id."""
BEFORE_ALL: Position = (-1, "", "")
# Each message costs some time and memory beside that of its characters.
MESSAGE_SIZE = 2_000
# What the event loop decodes without a turn for other tasks: some 10 ms, or one message.
PIECE_SIZE = 1024 * 1024
# Some 300 bytes each. Every query for the next ones searches the whole stream.
PLACES_AT_ONCE = 25_000

# The pairs travel as one parameter, so that a batch of any size is one query.
KNOWN = """
    SELECT log.stream, log.id, log.body
    FROM json_each(?) AS pair
    JOIN log ON log.stream = pair.value ->> 0 AND log.id = pair.value ->> 1
"""
APPEND = """
    INSERT INTO log (stream, id, sequence, occurred_at, kind, is_late, appended_at, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
COUNT = "UPDATE file SET commits = commits + 1"
NOTE_KIND = "INSERT INTO kinds VALUES (?) ON CONFLICT DO NOTHING"
# Materialized: otherwise SQLite would parse the JSON again for each message. Whole streams, which
# begin before any sequence, are spared the comparison.
WANTED = """
    WITH wanted (stream, sequence, occurred_at, id) AS MATERIALIZED (
        SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?1)
    )
"""
SIZES = """
    SELECT stream, (
        SELECT sum(length(log.body)) + count(*) * ?2 FROM log
        WHERE log.stream = wanted.stream AND (
            wanted.sequence < 0 OR (log.sequence, log.occurred_at, log.id)
                > (wanted.sequence, wanted.occurred_at, wanted.id)
        )
    )
    FROM wanted
"""
BODIES = """
    SELECT log.stream, log.body FROM wanted CROSS JOIN log
    WHERE log.stream = wanted.stream AND (
        wanted.sequence < 0 OR (log.sequence, log.occurred_at, log.id)
            > (wanted.sequence, wanted.occurred_at, wanted.id)
    )
"""
PLACES = """
    SELECT sequence, occurred_at, id, length(body) + ? FROM log
    WHERE stream = ? AND (sequence, occurred_at, id) > (?, ?, ?)
    ORDER BY sequence, occurred_at, id LIMIT ?
"""
HEAD = """
    SELECT sequence, occurred_at, id FROM messages WHERE event_id = ?
    ORDER BY sequence DESC, occurred_at DESC, id DESC LIMIT 1
"""
# CROSS: otherwise SQLite would read the whole stream and look for each message in the list.
BODIES_BY_ID = """
    SELECT log.body FROM json_each(?2) AS wanted CROSS JOIN log
    WHERE log.stream = ?1 AND log.id = wanted.value
"""
HISTORY_BY_ID = """
    SELECT log.id, sequence, occurred_at, kind, is_late, appended_at, body
    FROM json_each(?2) AS wanted CROSS JOIN log
    WHERE log.stream = ?1 AND log.id = wanted.value
    ORDER BY sequence, occurred_at, log.id
"""
COUNT_OF_EVENT = "SELECT count(*) FROM messages WHERE event_id = ?"
NUMBER = "SELECT number FROM streams WHERE event_id = ?"


# Plain types: sqlite3 has to look for an adapter for a named tuple or a bool.
Entry = tuple[int, str, int, str, str, int, str, str]
"""One message as the log keeps it: the table's columns, in order."""
Key = tuple[int, str]
"""A message's stream, by number, and its id."""
Piece = dict[int, list[str]]
"""The bodies of some messages, by stream."""


class Source(Protocol):
    """A source of messages: a database, or one of its transactions."""

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return all rows of a query."""


async def known(tx: StoreTransaction, keys: Collection[Key]) -> dict[Key, str]:
    """Return the bodies of those messages that are already in the log."""
    rows = await tx.fetch_all(KNOWN, (json.dumps(list(keys), ensure_ascii=False),))
    return {(stream, message_id): body for stream, message_id, body in rows}


def append(tx: StoreTransaction, entries: Sequence[Entry]) -> None:
    """Add messages to the log; count the commit, and note the kinds that the log holds."""
    if not entries:
        return
    # In the order of the key, so that neighbours in the tree are written together.
    tx.add(APPEND, sorted(entries))
    tx.add(NOTE_KIND, [(kind,) for kind in {entry[4] for entry in entries}])
    tx.add(COUNT)


async def pieces(source: Source, starts: Mapping[int, Position]) -> AsyncIterator[Piece]:
    """Read the messages of streams that come after a position of each, in bounded pieces.

    A piece holds several streams, each whole, or a part of one that is too long for a piece. The
    parts of a stream come in the order of position; the bodies within a piece in any order.
    """
    whole: dict[int, Position] = {}
    room = PIECE_SIZE
    for stream, size in await source.fetch_all(WANTED + SIZES, (_starts(starts), MESSAGE_SIZE)):
        if size is None:
            continue
        if size > PIECE_SIZE:
            async for piece in _parts(source, stream, starts[stream]):
                yield piece
            continue
        if size > room:
            yield await _bodies(source, whole)
            whole, room = {}, PIECE_SIZE
        whole[stream] = starts[stream]
        room -= size
    if whole:
        yield await _bodies(source, whole)


async def _bodies(source: Source, starts: Mapping[int, Position]) -> Piece:
    piece: Piece = {}
    for stream, body in await source.fetch_all(WANTED + BODIES, (_starts(starts),)):
        piece.setdefault(stream, []).append(body)
    return piece


async def _parts(source: Source, stream: int, start: Position) -> AsyncIterator[Piece]:
    async for ids in _ids(source, stream, start):
        rows = await source.fetch_all(BODIES_BY_ID, (stream, ids))
        yield {stream: [body for (body,) in rows]}


async def _ids(source: Source, stream: int, start: Position) -> AsyncIterator[str]:
    """Return the ids of one stream in the order of position, a piece of them as JSON at a time."""
    while places := await source.fetch_all(PLACES, (MESSAGE_SIZE, stream, *start, PLACES_AT_ONCE)):
        ids: list[str] = []
        room = PIECE_SIZE
        for _, _, message_id, size in places:
            if ids and size > room:
                yield json.dumps(ids, ensure_ascii=False)
                ids, room = [], PIECE_SIZE
            ids.append(message_id)
            room -= size
        yield json.dumps(ids, ensure_ascii=False)
        sequence, occurred_at, message_id, _ = places[-1]
        start = (sequence, occurred_at, message_id)


def _starts(starts: Mapping[int, Position]) -> str:
    return json.dumps([(stream, *start) for stream, start in starts.items()], ensure_ascii=False)


async def kinds(source: Database) -> set[str]:
    """Return the kinds of all messages in the log."""
    return {kind for (kind,) in await source.fetch_all("SELECT kind FROM kinds")}


async def is_empty(source: Database) -> bool:
    """Return whether no message has been accepted yet."""
    return not await source.fetch_all("SELECT 1 FROM log LIMIT 1")


async def head(source: Database, event_id: str) -> tuple[int, str, str] | None:
    """Return the position of the last message of a stream, or None if it has no message."""
    rows = await source.fetch_all(HEAD, (event_id,))
    return tuple(rows[0]) if rows else None


async def count(source: Source, event_id: str) -> int:
    """Return the number of messages of an event."""
    ((messages,),) = await source.fetch_all(COUNT_OF_EVENT, (event_id,))
    return int(messages)


async def history(source: Source, event_id: str) -> AsyncIterator[list[Row]]:
    """Read one stream in the order of position, as people read it, in bounded pieces."""
    for (stream,) in await source.fetch_all(NUMBER, (event_id,)):
        async for ids in _ids(source, stream, BEFORE_ALL):
            yield await source.fetch_all(HISTORY_BY_ID, (stream, ids))
