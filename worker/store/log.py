"""The log: every accepted message, in the transaction of its effect.

One table is the inbox that finds duplicates, the order of each stream, the source of a rebuild and
the history that people read. Knows no kinds: what it keeps is a stream, a position and a body.
"""

import json
from collections.abc import Collection, Sequence
from typing import NamedTuple

from worker.store.connection import Database
from worker.store.transaction import Row, Transaction

# The pairs travel as one parameter, so that a batch of any size is one query.
KNOWN = """
    SELECT log.event_id, log.id, log.body
    FROM json_each(?) AS pair
    JOIN log ON log.event_id = pair.value ->> 0 AND log.id = pair.value ->> 1
"""
APPEND = """
    INSERT INTO log (event_id, id, sequence, occurred_at, kind, is_late, appended_at, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
BODIES = """
    SELECT log.event_id, log.body FROM json_each(?) AS stream
    JOIN log ON log.event_id = stream.value
"""
HISTORY = """
    SELECT id, sequence, occurred_at, kind, is_late, appended_at, body
    FROM log WHERE event_id = ? ORDER BY sequence, occurred_at, id
"""


class Entry(NamedTuple):
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
    return {(event_id, message_id): body for event_id, message_id, body in rows}


async def append(tx: Transaction, entries: Sequence[Entry]) -> None:
    """Store messages for good."""
    # In the order of the key, so that neighbours in the tree are written together.
    await tx.execute_many(APPEND, sorted(entries))


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
