"""Fresh tables that are put in the place of the live ones, while workers go on.

Workers that commit meanwhile are followed: a stream that has grown since it was folded is folded
again. When few are left, the writers are locked out for as long as these take.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

import asyncpg

from worker.errors import StoreUnavailable, StoreUnusable
from worker.store.log import Key
from worker.store.postgres.address import Address
from worker.store.postgres.fresh_tables import STREAMS_AT_ONCE, PostgresTables
from worker.store.postgres.log import arrays
from worker.store.postgres.schemas import qualified
from worker.store.postgres.tables import (
    existing,
    noted_versions,
    replace_tables,
    require_replaceable,
)
from worker.store.tables import REMOVAL, Schema, quoted

# What writers wait for while it is folded; some tenths of a second.
LAST_MESSAGES = 2_000
# Workers that write faster than this process folds would be followed forever.
ROUNDS = 20
# Whoever needs the table waits behind a lock that is waited for, so each attempt is short.
LOCK_SECONDS = 1
LOCK_ATTEMPTS = 5
# A rebuild that is stopped while it locks others out is ended by the server.
IDLE_WHILE_LOCKING = "10s"

# Workers only read this table; other rebuilds are kept out.
ONLY_ONE = "LOCK TABLE projections IN SHARE UPDATE EXCLUSIVE MODE NOWAIT"
# No projection's table has a name with a space.
FOLDED = "folded streams"
CREATE_FOLDED = """
    CREATE UNLOGGED TABLE {} (event_id text COLLATE "C" PRIMARY KEY, messages bigint NOT NULL)
"""
NOTE_FOLDED = """
    INSERT INTO {} SELECT event_id, messages FROM streams WHERE event_id = ANY($1)
    ON CONFLICT (event_id) DO UPDATE SET messages = excluded.messages
"""
GROWN = """
    SELECT event_id, streams.messages
    FROM streams LEFT JOIN {} AS folded USING (event_id)
    WHERE streams.messages > 0 AND folded.messages IS DISTINCT FROM streams.messages
"""
HOLDERS = """
    SELECT DISTINCT format('%s (user %s, process %s)', a.application_name, a.usename, a.pid)
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.relation = ANY($1::text[]::regclass[]) AND l.granted AND l.pid <> pg_backend_pid()
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class RebuiltTables(PostgresTables):
    """Tables in the schema of the rebuild, until they are put in place."""

    purpose = "rebuild"
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
    is_first = False

    def __init__(self, address: Address, schema: Schema) -> None:
        """Prepare to replace the tables of a database; nothing is opened yet."""
        super().__init__(address, schema, address.rebuild_schema)
        self._folded = qualified(self._here, FOLDED)

    async def _prepare(self) -> None:
        session = self._session
        try:
            await session.run(ONLY_ONE)
        except asyncpg.LockNotAvailableError as error:
            raise StoreUnavailable(
                f"Another rebuild of these tables is running ({self.named}).",
                "wait for its end; pg_stat_activity shows it.",
            ) from error
        # Once more at the end; but nobody should wait for that to learn what is in the way.
        await require_replaceable(session, self._address, self._schema)
        await session.run(CREATE_FOLDED.format(self._folded))

    def _denied(self, error: asyncpg.InsufficientPrivilegeError) -> StoreUnusable:
        return StoreUnusable(
            f"The worker may not rebuild its tables ({self.named}: {error}).",
            f"let its role own the schemas {self._live} and {self._here}, and the tables in them.",
        )

    async def streams(self) -> AsyncIterator[dict[Key, str]]:
        """Yield all streams, and those that grow meanwhile, until few are left."""
        async for batch in super().streams():
            await self.tx.fetch_all(NOTE_FOLDED.format(self._folded), arrays(batch))
            yield batch
        await self.tx.flush()
        for table in self._schema:
            # Otherwise readers' queries would be planned blindly until a vacuum comes by.
            with self._faults():
                await self._session.run(f"ANALYZE {qualified(self._here, table)}")
        for _ in range(ROUNDS):
            grown = await self._scanned(GROWN.format(self._folded))
            if sum(messages for _, messages in grown) <= LAST_MESSAGES:
                break
            async for batch in self._again([event_id for event_id, _ in grown]):
                yield batch
        await self.tx.flush()

    async def grown_streams(self) -> AsyncIterator[dict[Key, str]]:
        """Lock all writers out, and yield the streams that have grown since, without rows.

        Raises `StoreUnavailable` if somebody holds the tables for too long.
        """
        await self._lock(["projections"])
        grown = await self._scanned(GROWN.format(self._folded))
        async for batch in self._again([event_id for event_id, _ in grown]):
            yield batch

    async def differing(self, table: str) -> list[str]:
        """Return the events whose rows differ, and whose streams have not grown."""
        event_ids = await super().differing(table)
        grown = {event_id for event_id, _ in await self._scanned(GROWN.format(self._folded))}
        return [event_id for event_id in event_ids if event_id not in grown]

    async def _again(self, event_ids: Sequence[str]) -> AsyncIterator[dict[Key, str]]:
        """Yield streams that were folded before, without rows."""
        for start in range(0, len(event_ids), STREAMS_AT_ONCE):
            some = event_ids[start : start + STREAMS_AT_ONCE]
            for table in self._schema:
                self.tx.add(REMOVAL.format(table), [(event_id,) for event_id in some])
            # Before their log is read: what is added to it in between shows as growth.
            await self.tx.fetch_all(NOTE_FOLDED.format(self._folded), arrays(some))
            yield {event_id: event_id for event_id in some}

    async def _lock(self, tables: Iterable[str]) -> None:
        """Keep everybody from these tables until the end of the transaction."""
        names = [qualified(self._live, table) for table in tables]
        session = self._session
        for attempt in range(LOCK_ATTEMPTS):
            await asyncio.sleep(attempt)
            with self._faults():
                await session.run(
                    f"SAVEPOINT locking; SET LOCAL lock_timeout = '{LOCK_SECONDS}s';"
                    f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_WHILE_LOCKING}'"
                )
                try:
                    await session.run(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE")
                except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                    await session.run("ROLLBACK TO locking; RELEASE locking")
                else:
                    await session.run("RELEASE locking")
                    return
        holders = [row[0] for row in await self._asked(HOLDERS, names)]
        raise StoreUnavailable(
            f"The tables cannot be replaced while other sessions hold them ({self.named}: "
            f"{', '.join(holders) or 'they have just ended'}).",
            "wait for their end, or end them; a long query or an audit may be one.",
        )

    async def put_in_place(self, versions: Mapping[str, int]) -> tuple[str, ...]:
        """Replace the live tables by these, note the versions, and commit.

        Whoever reads the live tables waits for the end. Raises `StoreUnusable` and changes nothing
        if something of others is in the way, and `StoreUnavailable` if somebody holds the tables
        for too long.
        """
        with self._faults():
            tables = {*self._schema, *await noted_versions(self._session, self._address)}
            # The log first, as readers do whose snapshot must not show the new tables as empty.
            live = await existing(self._session, self._address, tables)
            await self._lock(["log", *live])
            gone = await replace_tables(
                self._session, self._address, self._schema, versions, self._move
            )
            await self._session.run(f"DROP TABLE {self._folded}")
            await self._session.run("COMMIT")
        return gone

    async def _move(self) -> None:
        for table in self._schema:
            name = qualified(self._here, table)
            await self._session.run(f"ALTER TABLE {name} SET SCHEMA {quoted(self._live)}")
