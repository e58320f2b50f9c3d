"""The log: every accepted message, in the transaction of its effect.

One table is the inbox that finds duplicates, the order of each stream, the source of a rebuild and
the history that people read. Knows no kinds: what it keeps is a stream, a position and a body.
"""

import json
from collections.abc import Collection, Sequence

from worker.store.connection import Database
from worker.store.transaction import Row, StoreTransaction

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
BODIES = """
    SELECT log.stream, log.body FROM json_each(?) AS wanted JOIN log ON log.stream = wanted.value
"""
HISTORY = """
    SELECT id, sequence, occurred_at, kind, is_late, appended_at, body
    FROM messages WHERE event_id = ? ORDER BY sequence, occurred_at, id
"""
HEAD = """
    SELECT sequence, occurred_at, id FROM messages WHERE event_id = ?
    ORDER BY sequence DESC, occurred_at DESC, id DESC LIMIT 1
"""


# Plain, as sqlite3 takes neither a named tuple nor a bool without asking around what they are.
Entry = tuple[int, str, int, str, str, int, str, str]
"""One message as the log keeps it: the table's columns, in order."""
Key = tuple[int, str]
"""A message's stream, by number, and its id."""


async def known(tx: StoreTransaction, keys: Collection[Key]) -> dict[Key, str]:
    """Give the bodies of those messages that are in the log already."""
    rows = await tx.fetch_all(KNOWN, (json.dumps(list(keys), ensure_ascii=False),))
    return {(stream, message_id): body for stream, message_id, body in rows}


def append(tx: StoreTransaction, entries: Sequence[Entry]) -> None:
    """Store messages for good, and note how far the file has come and which kinds it holds."""
    if not entries:
        return
    # In the order of the key, so that neighbours in the tree are written together.
    tx.add(APPEND, sorted(entries))
    tx.add(NOTE_KIND, [(kind,) for kind in {entry[4] for entry in entries}])
    tx.add(COUNT)


async def bodies(tx: StoreTransaction, numbers: Collection[int]) -> dict[int, list[str]]:
    """Give all bodies of those streams, each stream's in no particular order."""
    streams: dict[int, list[str]] = {}
    if numbers:
        for stream, body in await tx.fetch_all(BODIES, (json.dumps(list(numbers)),)):
            streams.setdefault(stream, []).append(body)
    return streams


async def kinds(source: Database) -> set[str]:
    """Return the kinds of all messages in the log."""
    return {kind for (kind,) in await source.fetch_all("SELECT kind FROM kinds")}


async def is_empty(source: Database) -> bool:
    """Tell whether no message has been accepted yet."""
    return not await source.fetch_all("SELECT 1 FROM log LIMIT 1")


async def head(source: Database, event_id: str) -> tuple[int, str, str] | None:
    """Return the position of the last message of a stream, or None if it has no message."""
    rows = await source.fetch_all(HEAD, (event_id,))
    return tuple(rows[0]) if rows else None


async def history(source: Database, event_id: str) -> list[Row]:
    """Give one stream in the order of position, as people read it."""
    return await source.fetch_all(HISTORY, (event_id,))
