"""The log in SQLite: its queries, and how messages are added to it."""

import json
from collections.abc import Collection, Mapping, Sequence

from worker.store.log import MESSAGE_SIZE, Key, Log, MessageKey, Piece, Position
from worker.store.statements import Row

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
NUMBER = "SELECT number FROM streams WHERE event_id = ?"


class SqliteLog(Log):
    """Reads the log through the queries of a connection to the file."""

    async def _sizes(self, starts: Mapping[Key, Position]) -> list[tuple[Key, int]]:
        rows = await self.fetch_all(WANTED + SIZES, (_starts(starts), MESSAGE_SIZE))
        return [(stream, size) for stream, size in rows if size is not None]

    async def _bodies(self, starts: Mapping[Key, Position]) -> Piece:
        piece: Piece = {}
        for stream, body in await self.fetch_all(WANTED + BODIES, (_starts(starts),)):
            piece.setdefault(stream, []).append(body)
        return piece

    async def _places(
        self, stream: Key, start: Position, limit: int
    ) -> list[tuple[int, str, str, int]]:
        rows = await self.fetch_all(PLACES, (MESSAGE_SIZE, stream, *start, limit))
        return [(row[0], row[1], row[2], row[3]) for row in rows]

    async def _bodies_by_id(self, stream: Key, ids: Sequence[str]) -> list[str]:
        return [body for (body,) in await self.fetch_all(BODIES_BY_ID, (stream, _json(ids)))]

    async def _history_by_id(self, stream: Key, ids: Sequence[str]) -> list[Row]:
        return await self.fetch_all(HISTORY_BY_ID, (stream, _json(ids)))

    async def _key_of(self, event_id: str) -> Key | None:
        rows = await self.fetch_all(NUMBER, (event_id,))
        return rows[0][0] if rows else None

    async def known(self, keys: Collection[MessageKey]) -> dict[MessageKey, str]:
        """Return the bodies of those messages that are already in the log."""
        rows = await self.fetch_all(KNOWN, (_json(list(keys)),))
        return {(stream, message_id): body for stream, message_id, body in rows}


def _starts(starts: Mapping[Key, Position]) -> str:
    return _json([(stream, *start) for stream, start in starts.items()])


def _json(value: Sequence[object]) -> str:
    return json.dumps(value, ensure_ascii=False)
