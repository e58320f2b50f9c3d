"""A second count of appends: a trigger in the workers' database notes each row of the log.

The trigger runs in the transaction that appends the row, so it stays correct through every crash.
Its table has no key, so a message that was appended twice would be there twice.
"""

import sqlite3
from collections.abc import Hashable
from pathlib import Path
from typing import Protocol

from tests.database import change, query, rows
from tests.oracle import Row

INSTALL = (
    "CREATE TABLE chaos_appends (stream INTEGER NOT NULL, id TEXT NOT NULL)",
    "CREATE TRIGGER chaos_append AFTER INSERT ON log "
    "BEGIN INSERT INTO chaos_appends VALUES (new.stream, new.id); END",
)
BODIES = "SELECT event_id, id, body FROM messages"


class Witness(Protocol):
    """The workers' database, as somebody sees it who uses nothing of the worker."""

    async def install(self) -> None:
        """Begin to count, in a database that has the worker's tables."""
        ...

    async def appended(self) -> int:
        """Return the number of committed appends; while the database is away, the last one seen."""
        ...

    async def progress(self) -> int:
        """Return a number that grows by one with each append, and perhaps also without; cheap."""
        ...

    async def appends(self) -> list[Hashable]:
        """Return what the trigger has noted: the key of each append."""
        ...

    async def is_in_log(self, event_id: str, message_id: str) -> bool:
        """Return whether the log surely holds a message."""
        ...

    async def log(self) -> list[tuple[str, str, str]]:
        """Return the event's id, the message's id and the body of every message in the log."""
        ...

    async def rows(self) -> list[Row]:
        """Return the events, as `tests.oracle.expected_rows` does."""
        ...

    async def damage(self) -> str:
        """Let the engine verify its own files; return what it finds."""
        ...


class FileWitness:
    """A witness of a file."""

    def __init__(self, database: Path) -> None:
        """Look into this file."""
        self._database = database

    async def install(self) -> None:
        """Add the table and the trigger."""
        for statement in INSTALL:
            change(self._database, statement)

    async def appended(self) -> int:
        """Look at the end of the table only."""
        try:
            return int(query(self._database, "SELECT max(rowid) FROM chaos_appends")[0][0] or 0)
        except sqlite3.OperationalError:
            return 0

    async def progress(self) -> int:
        """Return the number of appends, which is at hand."""
        return await self.appended()

    async def appends(self) -> list[Hashable]:
        """Read the whole table."""
        return [*query(self._database, "SELECT stream, id FROM chaos_appends")]

    async def is_in_log(self, event_id: str, message_id: str) -> bool:
        """Look for the message."""
        # Both consist of letters, digits and dashes.
        where = f"event_id = '{event_id}' AND id = '{message_id}'"
        return bool(query(self._database, f"SELECT 1 FROM messages WHERE {where}"))

    async def log(self) -> list[tuple[str, str, str]]:
        """Read the view of messages."""
        return [(event_id, id_, body) for event_id, id_, body in query(self._database, BODIES)]

    async def rows(self) -> list[Row]:
        """Read the table of events."""
        return rows(self._database)

    async def damage(self) -> str:
        """Run `PRAGMA integrity_check`."""
        found = query(self._database, "PRAGMA integrity_check")
        return "" if found == [("ok",)] else str(found)
