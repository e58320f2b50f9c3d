"""The contents of the worker's database at the end, read as any SQLite client reads it.

It does not use the worker's own reads, so that the proof does not rely on what it proves.
"""

from dataclasses import dataclass
from pathlib import Path

from tests.database import query, rows
from tests.oracle import Row


@dataclass(frozen=True, slots=True)
class ReadModel:
    """The whole database at the end."""

    rows: list[Row]
    """The table `events`, ordered by event_id."""
    log: dict[tuple[str, str], bytes]
    """(event_id, id) -> the accepted body."""
    late: int
    orphans: int


def read(database: Path) -> ReadModel:
    """Read everything."""
    ((late,),) = query(database, "SELECT count(*) FROM log WHERE is_late")
    ((orphans,),) = query(
        database,
        "SELECT count(*) FROM messages WHERE event_id NOT IN (SELECT event_id FROM events)",
    )
    log = query(database, "SELECT event_id, id, body FROM messages")
    return ReadModel(
        rows=rows(database),
        log={(event_id, id_): body.encode() for event_id, id_, body in log},
        late=late,
        orphans=orphans,
    )
