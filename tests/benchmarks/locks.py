"""How much of their time sessions on PostgreSQL wait for locks that others hold."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg

from tests.benchmarks.postgres import Postgres
from tests.postgres import PostgresDatabase

LOOK_SECONDS = 0.05
WAITING = """
    SELECT count(*) FILTER (WHERE wait_event_type = 'Lock')
    FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'
"""


class LockWaits:
    """Looks at the sessions twenty times a second."""

    def __init__(self, pid: int) -> None:
        """Begin without a look."""
        self.pid = pid
        """The process that serves the observer itself."""
        self.looks = 0
        """How often it has looked."""
        self.waiting = 0
        """How many sessions it has seen waiting, summed over its looks."""

    async def watch(self, connection: "asyncpg.Connection[asyncpg.Record]", name: str) -> None:
        """Look until cancelled."""
        look = await connection.prepare(WAITING)
        while True:
            self.waiting += await look.fetchval(name)
            self.looks += 1
            await asyncio.sleep(LOOK_SECONDS)  # noqa: TID251 - samples over time


@asynccontextmanager
async def lock_waits(postgres: Postgres, database: PostgresDatabase) -> AsyncIterator[LockWaits]:
    """Watch the sessions on a database during the block."""
    node = postgres.node
    connection = await asyncpg.connect(
        host=str(node.folder), port=node.port, user="postgres", database="postgres"
    )
    waits = LockWaits(connection.get_server_pid())
    watching = asyncio.create_task(waits.watch(connection, database.name))
    try:
        yield waits
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await connection.close()
