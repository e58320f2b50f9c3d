"""The rules of the events table on PostgreSQL, with an inbox, as a careful application has them.

Shared by the contenders that commit each message there. One statement, one trip and one commit note
the message's id in the inbox and change the row, unless the id was there. So duplicates change
nothing; a late message is applied when it arrives, as in `rules.py`, and there is no log to make
the rows from again.

With one connection, messages are applied in the order of arrival. With several, which commit at the
same time, messages of one event take turns: without that, the rows would be wrong.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.benchmarks.contenders import rules
from worker.projections import load
from worker.settings import Settings

INBOX = 'CREATE TABLE inbox (id text COLLATE "C" PRIMARY KEY)'
# Where the worker's tables are by default.
SCHEMA: str = Settings.model_fields["database_schema"].default
ONCE = "WITH new AS (INSERT INTO inbox VALUES ($1) ON CONFLICT DO NOTHING RETURNING id)"
STATEMENTS = {
    rules.PLAN: f"""
        {ONCE} INSERT INTO events (event_id, chat_id, kind, status, props_json, planned_for,
                                   created_at, updated_at)
        SELECT $2, $3, $4, 'planned', $5, $6, $7, $8 FROM new ON CONFLICT (event_id) DO NOTHING
    """,
    rules.START: f"""
        {ONCE} UPDATE events SET status = 'active', started_at = $2, updated_at = $3 FROM new
        WHERE event_id = $4 AND status IN ('planned', 'active')
    """,
    rules.END: f"""
        {ONCE} UPDATE events SET status = $2, completed_at = $3, updated_at = $4 FROM new
        WHERE event_id = $5 AND status IN ('planned', 'active')
    """,
    rules.REVERT: f"""
        {ONCE} UPDATE events SET status = $2, updated_at = $3 FROM new WHERE event_id = $4
    """,
}


class Events:
    """The table, and the connections to it."""

    def __init__(self) -> None:
        """Begin without connections."""
        self._idle: asyncio.LifoQueue[asyncpg.Connection[asyncpg.Record]] = asyncio.LifoQueue()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def connect(self, url: str, connections: int) -> None:
        """Create the tables, and connect."""
        for _ in range(connections):
            connection = await asyncpg.connect(url, server_settings={"search_path": SCHEMA})
            self._idle.put_nowait(connection)
        connection = await self._idle.get()
        await connection.execute(f"CREATE SCHEMA {SCHEMA}")
        await connection.execute(INBOX)
        for projection in load().projections:
            for statement in projection.schema:
                # By bytes, which compare faster than the words of a language.
                await connection.execute(statement.replace(" TEXT ", ' TEXT COLLATE "C" '))
        self._idle.put_nowait(connection)

    async def apply(self, message: rules.AnyMessage) -> None:
        """Update the row of the message's event, unless it was done before, and commit.

        Await it in the order of arrival, from any number of tasks.
        """
        statement, parameters = rules.statement(message)
        # The lock is fair: who waits first goes first.
        async with self._turns[message.payload.event_id]:
            connection = await self._idle.get()
            try:
                await connection.execute(STATEMENTS[statement], message.id, *parameters)
            finally:
                self._idle.put_nowait(connection)

    async def close(self) -> None:
        """Close the connections, none of which is in use."""
        while not self._idle.empty():
            await self._idle.get_nowait().close()


@asynccontextmanager
async def events_on(url: str, connections: int = 1) -> AsyncIterator[Events]:
    """Create the table in an empty database, and hold connections to it."""
    events = Events()
    await events.connect(url, connections)
    yield events
    await events.close()
