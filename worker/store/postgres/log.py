"""The log in PostgreSQL: its queries, and how messages are added to it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from worker.store.log import MESSAGE_SIZE, Key, Log, MessageKey, Piece, Position
from worker.store.statements import Row

# Lists travel as arrays, so that a batch of any size is one query.
KNOWN = """
    SELECT event_id, id, body FROM unnest($1::text[], $2::text[]) AS wanted (event_id, id)
    JOIN log USING (event_id, id)
"""
WANTED = """
    unnest($1::text[], $2::bigint[], $3::text[], $4::text[])
        AS wanted (event_id, sequence, occurred_at, id)
"""
# Whole streams, which begin before any sequence, are spared the comparison.
FOLLOWING = """
    log.event_id = wanted.event_id AND (
        wanted.sequence < 0 OR (log.sequence, log.occurred_at, log.id)
            > (wanted.sequence, wanted.occurred_at, wanted.id)
    )
"""
SIZES = f"""
    SELECT wanted.event_id, (sum(length(log.body)) + count(*) * $5::bigint)::bigint
    FROM {WANTED} JOIN log ON {FOLLOWING} GROUP BY wanted.event_id
"""  # noqa: S608 - our own texts
BODIES = f"""
    SELECT log.event_id, log.body FROM {WANTED} JOIN log ON {FOLLOWING}
"""  # noqa: S608 - our own texts
PLACES = """
    SELECT sequence, occurred_at, id, length(body) + $1::bigint FROM log
    WHERE event_id = $2 AND (sequence, occurred_at, id) > ($3, $4, $5)
    ORDER BY sequence, occurred_at, id LIMIT $6
"""
BODIES_BY_ID = "SELECT body FROM log WHERE event_id = $1 AND id = ANY ($2::text[])"
HISTORY_BY_ID = """
    SELECT id, sequence, occurred_at, kind, is_late, appended_at, body FROM log
    WHERE event_id = $1 AND id = ANY ($2::text[]) ORDER BY sequence, occurred_at, id
"""
EXISTS = "SELECT 1 FROM streams WHERE event_id = ? AND messages > 0"


class PostgresLog(Log):
    """Reads the log through the queries of a connection; an event's id is its stream's key."""

    async def _sizes(self, starts: Mapping[Key, Position]) -> list[tuple[Key, int]]:
        rows = await self.fetch_all(SIZES, (*_starts(starts), MESSAGE_SIZE))
        return [(row[0], row[1]) for row in rows]

    async def _bodies(self, starts: Mapping[Key, Position]) -> Piece:
        piece: Piece = {}
        for event_id, body in await self.fetch_all(BODIES, _starts(starts)):
            piece.setdefault(event_id, []).append(body)
        return piece

    async def _places(
        self, stream: Key, start: Position, limit: int
    ) -> list[tuple[int, str, str, int]]:
        rows = await self.fetch_all(PLACES, (MESSAGE_SIZE, stream, *start, limit))
        return [(row[0], row[1], row[2], row[3]) for row in rows]

    async def _bodies_by_id(self, stream: Key, ids: Sequence[str]) -> list[str]:
        rows = await self.fetch_all(BODIES_BY_ID, (stream, *arrays(ids)))
        return [body for (body,) in rows]

    async def _history_by_id(self, stream: Key, ids: Sequence[str]) -> list[Row]:
        return await self.fetch_all(HISTORY_BY_ID, (stream, *arrays(ids)))

    async def _key_of(self, event_id: str) -> Key | None:
        return event_id if await self.fetch_all(EXISTS, (event_id,)) else None

    async def known(self, keys: Collection[MessageKey]) -> dict[MessageKey, str]:
        """Return the bodies of those messages that are already in the log."""
        rows = await self.fetch_all(KNOWN, columns(keys, 2))
        return {(event_id, message_id): body for event_id, message_id, body in rows}


def arrays(*columns: Iterable[object]) -> tuple[Any, ...]:
    """Return lists as parameters of a statement, in which each is an array."""
    return tuple(map(list, columns))


def columns(rows: Collection[Sequence[object]], count: int) -> tuple[Any, ...]:
    """Return the columns of rows as parameters of a statement."""
    return arrays(*zip(*rows, strict=True)) if rows else arrays(*[()] * count)


def _starts(starts: Mapping[Key, Position]) -> tuple[Any, ...]:
    return (list(starts), *columns(starts.values(), 3))
