"""The log: every accepted message, in the transaction of its effect.

One table is the inbox that finds duplicates, the order of each stream, the source of a rebuild and
the history that people read. Knows no kinds: what it keeps is a stream, a position and a body.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from worker.store.connection import Database
from worker.store.transaction import Row, Transaction

Position = tuple[int, str, str]

# The pairs travel as one parameter, so that a batch of any size is one query.
KNOWN = """
    SELECT log.event_id, log.id, log.body
    FROM json_each(?) AS pair
    JOIN log ON log.event_id = pair.value ->> 0 AND log.id = pair.value ->> 1
"""
HEADS = """
    SELECT streams.event_id, streams.sequence, streams.occurred_at, streams.id
    FROM json_each(?) AS stream
    JOIN streams ON streams.event_id = stream.value
"""
APPEND = """
    INSERT INTO log (event_id, id, sequence, occurred_at, kind, is_late, appended_at, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
ADVANCE = """
    INSERT INTO streams (event_id, sequence, occurred_at, id) VALUES (?, ?, ?, ?)
    ON CONFLICT (event_id) DO UPDATE
    SET sequence = excluded.sequence, occurred_at = excluded.occurred_at, id = excluded.id
"""
BODIES = """
    SELECT log.event_id, log.body FROM json_each(?) AS stream
    JOIN log ON log.event_id = stream.value
"""
HISTORY = """
    SELECT id, sequence, occurred_at, kind, is_late, appended_at, body
    FROM log WHERE event_id = ? ORDER BY sequence, occurred_at, id
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message as the log keeps it; the fields are the table's columns, in order."""

    event_id: str
    id: str
    sequence: int
    occurred_at: str
    kind: str
    is_late: bool
    appended_at: str
    body: str


async def known(tx: Transaction, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Give the bodies of those messages, (event_id, id), that are in the log already."""
    rows = await tx.fetch_all(KNOWN, (json.dumps(list(keys), ensure_ascii=False),))
    return {(row["event_id"], row["id"]): row["body"] for row in rows}


async def heads(tx: Transaction, event_ids: Collection[str]) -> dict[str, Position]:
    """Give the position of the last message of each of those streams that has any."""
    rows = await tx.fetch_all(HEADS, (json.dumps(list(event_ids), ensure_ascii=False),))
    return {row["event_id"]: (row["sequence"], row["occurred_at"], row["id"]) for row in rows}


async def append(tx: Transaction, entries: Sequence[Entry]) -> None:
    """Store messages for good."""
    # In the order of the key, so that neighbours in the tree are written together.
    ordered = sorted(entries, key=lambda entry: (entry.event_id, entry.id))
    await tx.execute_many(
        APPEND,
        [
            (e.event_id, e.id, e.sequence, e.occurred_at, e.kind, e.is_late, e.appended_at, e.body)
            for e in ordered
        ],
    )


async def advance(tx: Transaction, new_heads: Mapping[str, Position | None]) -> None:
    """Note the new heads of streams."""
    rows = [(event_id, *head) for event_id, head in sorted(new_heads.items()) if head]
    await tx.execute_many(ADVANCE, rows)


async def bodies(tx: Transaction, event_ids: Collection[str]) -> dict[str, list[str]]:
    """Give all bodies of those streams, each stream's in no particular order."""
    streams: dict[str, list[str]] = {}
    if event_ids:
        for row in await tx.fetch_all(BODIES, (json.dumps(list(event_ids), ensure_ascii=False),)):
            streams.setdefault(row["event_id"], []).append(row["body"])
    return streams


async def is_empty(source: Database) -> bool:
    """Tell whether no message has been accepted yet."""
    return not await source.fetch_all("SELECT 1 FROM log LIMIT 1")


async def history(source: Database, event_id: str) -> list[Row]:
    """Give one stream in the order of position, as people read it."""
    return await source.fetch_all(HISTORY, (event_id,))
