"""The witness of a database in PostgreSQL, which looks as superuser at whichever node is primary.

The trigger and its table belong to the superuser, and stand in a schema of their own.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import asyncpg

from tests.chaos.pair import AWAY, Pair
from tests.oracle import COLUMNS, Row

SCHEMA = "projection"
INSTALL = f"""
    CREATE SCHEMA chaos;
    CREATE TABLE chaos.appends (number bigserial PRIMARY KEY, event_id text, id text);
    CREATE FUNCTION chaos.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            INSERT INTO chaos.appends (event_id, id) VALUES (new.event_id, new.id);
            RETURN NULL;
        END
    $$;
    CREATE TRIGGER chaos_append AFTER INSERT ON {SCHEMA}.log
        FOR EACH ROW EXECUTE FUNCTION chaos.note();
    CREATE EXTENSION amcheck
"""
IN_LOG = f"SELECT true FROM {SCHEMA}.messages WHERE event_id = $1 AND id = $2"
BODIES = f"SELECT event_id, id, body FROM {SCHEMA}.messages"
ROWS = f'SELECT {", ".join(COLUMNS)} FROM {SCHEMA}.events ORDER BY event_id COLLATE "C"'
TABLES = """
    SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE nspname = ANY ($1) AND relkind::text = $2
"""
LOOK_SECONDS = 1


class PostgresWitness:
    """A witness of a database on a pair of nodes."""

    def __init__(self, pair: Pair, database: str) -> None:
        """Look into this database."""
        self._pair = pair
        self._database = database
        self._looking = asyncio.Lock()
        self._connection: asyncpg.Connection | None = None
        self._port = 0
        self._seen: dict[str, int] = {}

    async def install(self) -> None:
        """Add the table and the trigger."""
        async with self._connected() as connection:
            await connection.execute(INSTALL)

    async def appended(self) -> int:
        """Count the table's rows."""
        return await self._number("appended", "SELECT count(*) FROM chaos.appends")

    async def progress(self) -> int:
        """Look at the end of the table, where a transaction that was rolled back leaves a gap."""
        return await self._number("progress", "SELECT max(number) FROM chaos.appends")

    async def _number(self, name: str, sql: str) -> int:
        found = await self._look(sql)
        if isinstance(found, int):
            self._seen[name] = found
        return self._seen.get(name, 0)

    async def is_in_log(self, event_id: str, message_id: str) -> bool:
        """Look for the message, if the database answers soon."""
        return bool(await self._look(IN_LOG, event_id, message_id))

    async def appends(self) -> list[Hashable]:
        """Read the whole table."""
        return [*await self._ask("SELECT event_id, id FROM chaos.appends")]

    async def log(self) -> list[tuple[str, str, str]]:
        """Read the view of messages."""
        return [(event_id, id_, body) for event_id, id_, body in await self._ask(BODIES)]

    async def rows(self) -> list[Row]:
        """Read the table of events."""
        return await self._ask(ROWS)

    async def damage(self) -> str:
        """Let PostgreSQL compare tables and indexes (postgresql.org/docs/current/amcheck)."""
        schemas = [SCHEMA, "chaos"]
        found = []
        try:
            for (table,) in await self._ask(TABLES, schemas, "r"):
                found += await self._ask("SELECT * FROM verify_heapam($1::regclass)", table)
            for (index,) in await self._ask(TABLES, schemas, "i"):
                await self._ask("SELECT bt_index_parent_check($1::regclass, true)", index)
        except asyncpg.PostgresError as error:
            return str(error)
        return str(found) if found else ""

    async def _ask(self, sql: str, *parameters: object) -> list[Row]:
        """Return all rows, however long that takes."""
        async with self._connected() as connection:
            return [tuple(row) for row in await connection.fetch(sql, *parameters)]

    async def _look(self, sql: str, *parameters: object) -> object:
        """Return one value through a connection that is kept; None if the database is away."""
        async with self._looking:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    connection = await self._kept()
                    return await connection.fetchval(sql, *parameters)
            except AWAY:
                self._drop()
                return None

    async def _kept(self) -> asyncpg.Connection:
        if self._connection is None or self._port != self._pair.primary.port:
            self._drop()
            self._connection = await self._connect()
            self._port = self._pair.primary.port
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """Close the connection that is kept."""
        self._drop()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await self._connect()
        try:
            yield connection
        finally:
            await connection.close()

    async def _connect(self) -> asyncpg.Connection:
        primary = self._pair.primary
        return await asyncpg.connect(
            host=str(primary.folder), port=primary.port, user="postgres", database=self._database
        )
