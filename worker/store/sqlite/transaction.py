"""One transaction of SQLite: all statements that wait run in one call of its thread (driver.py)."""

import asyncio
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import aiosqlite

from worker.store.failures import PlainAuthor
from worker.store.log import Entry
from worker.store.sqlite.driver import COMMIT, Preceded
from worker.store.sqlite.log import APPEND, COUNT, NOTE_KIND, SqliteLog
from worker.store.sqlite.register import SqliteRegister
from worker.store.sqlite.streams import Streams
from worker.store.statements import Parameters, Row
from worker.store.streams import Stream
from worker.store.transaction import StoreTransaction

COMMITS = "SELECT commits FROM file"

# Every name in these statements comes from a registered projection, never from input.
WITH_ROWS = "SELECT event_id FROM {} WHERE event_id IN (SELECT value FROM json_each(?1))"
LONE_ROWS = """
    SELECT *, count(*) FROM {} WHERE event_id IN (SELECT value FROM json_each(?)) GROUP BY event_id
"""


class SqliteTransaction(SqliteLog, StoreTransaction):
    """A transaction on a connection to the file."""

    def __init__(
        self, connection: aiosqlite.Connection, path: Path | str, streams: Streams | None = None
    ) -> None:
        """Work on a connection to this file, on which a transaction begins or has begun.

        `streams` is what is remembered of them since the last commit.
        """
        super().__init__(SqliteRegister(path))
        self._connection = connection
        self._streams = streams or Streams()
        self.commits = 0
        """How many commits have appended to the log of this file; known after the commit."""

    async def commit(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Run what waits, and commit; `meanwhile` is called while SQLite does."""
        self.add(COMMIT)
        committing = asyncio.ensure_future(self._call(COMMITS))
        try:
            if meanwhile is not None:
                # One turn of the loop hands the statement over; between it and the next, the loop
                # lets go of Python's lock, and SQLite's thread takes it. Otherwise that thread
                # would wait for the lock (sys.getswitchinterval, 5 ms) or for `meanwhile` to end.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                meanwhile()
        finally:
            ((self.commits,),) = await committing

    async def lock(self, event_ids: Collection[str], versions: Mapping[str, int]) -> None:
        """Do nothing: one process writes to the file."""

    async def streams(self, event_ids: Iterable[str]) -> dict[str, Stream]:
        """Return the streams of these events as they are now; new ones are opened."""
        return await self._streams.of(self, event_ids)

    def remember(self, streams: Mapping[str, Stream]) -> None:
        """Note streams as this transaction has left them."""
        self._streams.remember(streams)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add messages to the log; count the commit, and note the kinds that the log holds."""
        if not entries:
            return
        # In the order of the key, so that neighbours in the tree are written together.
        self.add(APPEND, sorted(entries))
        self.add(NOTE_KIND, [(kind,) for kind in {entry[4] for entry in entries}])
        self.add(COUNT)

    async def with_rows(self, tables: Iterable[str], event_ids: Collection[str]) -> set[str]:
        """Return the events that have a row in any of the tables, once waiting statements ran."""
        parts = [WITH_ROWS.format(table) for table in tables]
        if not event_ids or not parts:
            await self.flush()
            return set()
        parameters = (json.dumps(list(event_ids), ensure_ascii=False),)
        return {row[0] for row in await self.fetch_all(" UNION ALL ".join(parts), parameters)}

    async def _counted_rows(self, table: str, event_ids: Sequence[str]) -> list[Row]:
        return await self.fetch_all(
            LONE_ROWS.format(table), (json.dumps(event_ids, ensure_ascii=False),)
        )

    async def _call(
        self, sql: str, parameters: Parameters = (), author: PlainAuthor | None = None
    ) -> list[Row]:
        register = self.register
        # A handler that catches an error must not make the batch look complete.
        register.require_none_for(author)
        before = self.statements.take()
        try:
            rows = await self._connection.execute_fetchall(
                sql, Preceded(before, parameters, register.of_handlers, author)
            )
        except Exception as error:
            blamed = register.of_statement(error, author)
            if blamed is error:
                raise
            raise blamed from error
        register.require_none_for(author)
        return list(rows)
