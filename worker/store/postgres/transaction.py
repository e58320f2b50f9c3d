"""One transaction of PostgreSQL, which any number of workers run at the same time.

Its first statement locks the streams of the batch, and says where each one is. Nothing that was
remembered before is used but snapshots, and those only if the locked row has counted no message
since.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from time import monotonic

from worker.errors import StoreUnavailable
from worker.store.failures import PlainAuthor
from worker.store.log import Entry, Position
from worker.store.postgres.driver import Driver
from worker.store.postgres.log import PostgresLog, arrays, columns
from worker.store.postgres.register import PostgresRegister
from worker.store.postgres.session import Session
from worker.store.statements import Parameters, Row
from worker.store.streams import Snapshots, Stream
from worker.store.transaction import NOTHING, StoreTransaction

# In the order of the key, so that no two transactions wait for each other. A row that is there is
# written, too, because that locks it. The versions are read after any wait for a rebuild, whose
# lock on that table keeps this statement from beginning.
LOCK = """
    WITH locked AS (
        INSERT INTO streams (event_id)
        SELECT each FROM unnest($1::text[]) AS each ORDER BY each COLLATE "C"
        ON CONFLICT (event_id) DO UPDATE SET event_id = excluded.event_id
        RETURNING event_id, messages, head_sequence, head_at, head_id
    )
    SELECT event_id, messages, head_sequence, head_at, head_id, NULL, NULL FROM locked
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, NULL, table_name, version FROM projections
"""
APPEND = """
    WITH entries AS (
        INSERT INTO log (event_id, id, sequence, occurred_at, kind, is_late, appended_at, body)
        SELECT * FROM unnest(
            $1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::text[],
            $8::text[]
        )
    ), noted AS (
        INSERT INTO kinds SELECT each FROM unnest($9::text[]) AS each ORDER BY each COLLATE "C"
        ON CONFLICT DO NOTHING
    )
    UPDATE streams
    SET messages = grown.messages, head_sequence = grown.sequence, head_at = grown.at,
        head_id = grown.id
    FROM unnest($10::text[], $11::bigint[], $12::bigint[], $13::text[], $14::text[])
        AS grown (event_id, messages, sequence, at, id)
    WHERE streams.event_id = grown.event_id
"""
# The server ends a session that asks nothing for two seconds; handlers may compute for longer.
SILENT_SECONDS = 0.5

# Every name in these statements comes from a registered projection, never from input.
WITHOUT_ROWS = "SELECT each FROM unnest($1::text[]) AS each WHERE {}"
WITHOUT_ROW = "NOT EXISTS (SELECT FROM {} AS rows WHERE rows.event_id = each)"
LONE_ROWS = """
    SELECT DISTINCT ON (event_id) *, count(*) OVER (PARTITION BY event_id) FROM {}
    WHERE event_id = ANY ($1::text[])
"""


class PostgresTransaction(PostgresLog, StoreTransaction):
    """A transaction that has begun on a session."""

    def __init__(self, session: Session, driver: Driver, named: str, snapshots: Snapshots) -> None:
        """Work on a session, on which a transaction has begun.

        `snapshots` are those that the last transactions left.
        """
        super().__init__(PostgresRegister(named))
        self._session = session
        self._driver = driver
        self._named = named
        self._snapshots = snapshots
        self._streams: dict[str, Stream] = {}
        self._asked_at = monotonic()

    async def commit(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Run what waits, and commit; `meanwhile` is called while the server does."""
        await self.flush()
        committing = asyncio.ensure_future(self._end())
        try:
            if meanwhile is not None:
                # One turn of the loop sends the statement.
                await asyncio.sleep(0)
                meanwhile()
        finally:
            await committing

    async def keep_alive(self) -> None:
        """Ask the server something if nothing was asked for a while, lest it end the session.

        The statements that wait go on waiting, so that failures are found where they always are.
        Raises `StoreUnavailable` if the session has ended.
        """
        if monotonic() - self._asked_at < SILENT_SECONDS:
            return
        try:
            await self._session.run("SELECT 1")
        except Exception as error:
            raise self.register.of_statement(error, None) from error
        self._asked_at = monotonic()

    async def _end(self) -> None:
        try:
            ended = await self._session.run("COMMIT")
        except Exception as error:
            raise self.register.of_statement(self._driver.refused(error), None) from error
        # The server rolls back, and reports no error, if a statement has failed before.
        if ended != "COMMIT":
            raise StoreUnavailable(
                f"The server has not committed ({self._named}: {ended}).",
                "the worker tries the batch again.",
            )

    async def lock(self, event_ids: Collection[str], versions: Mapping[str, int]) -> None:
        """Let no other worker add to the streams of these events until this transaction ends.

        Raises `StoreUnavailable` if a release with other versions of the tables has rebuilt them.
        """
        noted: dict[str, int] = {}
        for event_id, messages, *head, table, version in await self.fetch_all(
            LOCK, arrays(event_ids)
        ):
            if event_id is None:
                noted[table] = version
            else:
                place = None if head[0] is None else (head[0], head[1], head[2])
                self._streams[event_id] = Stream(event_id, place, messages=messages)
        if noted != versions:
            raise _folded_by_another(self._named, noted, versions)

    async def streams(self, event_ids: Iterable[str]) -> dict[str, Stream]:
        """Return the streams of these events, which are locked, as they are now."""
        found: dict[str, Stream] = {}
        for event_id in event_ids:
            stream = self._streams[event_id]
            snapshot = self._snapshots.get(event_id, stream.messages)
            found[event_id] = stream._replace(snapshot=snapshot) if snapshot else stream
        return found

    def remember(self, streams: Mapping[str, Stream]) -> None:
        """Note streams as this transaction has left them."""
        for event_id, stream in streams.items():
            snapshot = stream.snapshot
            self._snapshots.note(event_id, snapshot, stream.messages)
            self._streams[event_id] = stream._replace(snapshot=None) if snapshot else stream

    def append(self, entries: Sequence[Entry]) -> None:
        """Add messages to the log, to the counts and heads of their streams, and to the kinds."""
        if not entries:
            return
        grown: dict[str, tuple[int, Position]] = {}
        for key, message_id, sequence, occurred_at, *_ in entries:
            event_id = str(key)
            if event_id in grown:
                messages, head = grown[event_id]
            else:
                stream = self._streams[event_id]
                messages, head = stream.messages, stream.head or (-1, "", "")
            place = (sequence, occurred_at, message_id)
            grown[event_id] = (messages + 1, max(head, place))
        kinds = {entry[4] for entry in entries}
        rows = [(event_id, count, *head) for event_id, (count, head) in grown.items()]
        # In the order of the key, so that neighbours in the index are written together.
        self.add(APPEND, [columns(sorted(entries), 8) + arrays(kinds) + columns(rows, 5)])

    async def with_rows(self, tables: Iterable[str], event_ids: Collection[str]) -> set[str]:
        """Return the events that have a row in any of the tables, once waiting statements ran."""
        parts = [WITHOUT_ROW.format(table) for table in tables]
        if not event_ids or not parts:
            await self.flush()
            return set()
        # Most events have one.
        lacking = WITHOUT_ROWS.format(" AND ".join(parts))
        return set(event_ids) - {row[0] for row in await self.fetch_all(lacking, arrays(event_ids))}

    async def _counted_rows(self, table: str, event_ids: Sequence[str]) -> list[Row]:
        return await self.fetch_all(LONE_ROWS.format(table), arrays(event_ids))

    async def _call(
        self, sql: str, parameters: Parameters = (), author: PlainAuthor | None = None
    ) -> list[Row]:
        register = self.register
        # A handler that catches an error must not make the batch look complete.
        register.require_none_for(author)
        before = self.statements.take()
        try:
            await self._driver.run(before, register.of_handlers)
            if sql == NOTHING:
                rows = []
            elif author is None:
                rows = await self._driver.fetch(sql, parameters)
            else:
                rows = await self._driver.fetch_for_handler(sql, parameters)
        except Exception as error:
            blamed = register.of_statement(error, author)
            if blamed is error:
                raise
            raise blamed from error
        self._asked_at = monotonic()
        register.require_none_for(author)
        return rows


def _folded_by_another(
    named: str, noted: Mapping[str, int], versions: Mapping[str, int]
) -> StoreUnavailable:
    """Return the error for tables that were folded by other handlers than this worker's."""
    differing = "; ".join(
        f"{table} was folded by version {noted.get(table, 'none')}, this worker has "
        f"{versions.get(table, 'none')}"
        for table in sorted({*noted, *versions})
        if noted.get(table) != versions.get(table)
    )
    return StoreUnavailable(
        f"Another release has rebuilt the tables ({named}: {differing}).",
        "this worker holds its messages. Upgrade it, or start it again to rebuild the tables with "
        "its own handlers; docs/upgrade.md says more.",
    )
