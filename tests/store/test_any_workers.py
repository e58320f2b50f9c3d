"""Any number of workers on one database, whatever they share and whenever they die."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.builders import Message, cancelled, completed, expired, planned, started
from tests.oracle import expected_rows, position
from tests.places import change, rows, writer_at
from tests.postgres import PostgresDatabase
from tests.unit.projecting import EVENTS, LOG, arrivals, projecting_with, shipped
from tests.unit.test_any_order import arrivals as arriving
from tests.unit.test_any_order import histories
from worker.errors import StoreUnavailable
from worker.projector import Projector
from worker.rebuild import create_tables
from worker.store.postgres import connection, transaction
from worker.store.postgres.address import Address
from worker.store.postgres.session import Session
from worker.store.postgres.store import Writer
from worker.store.statements import Parameters, Row

T = TypeVar("T")
HEADS = """
    SELECT event_id, messages, head_sequence, head_at, head_id FROM streams
    WHERE messages > 0 ORDER BY event_id
"""
KINDS = "SELECT kind FROM kinds ORDER BY kind"
# Any batch takes less, so a worker that tries this often is stuck.
ATTEMPTS = 50


class MortalSession(Session):
    """A session whose connection is cut at some of its worker's statements."""

    deaths: "Deaths"

    async def run(self, sql: str) -> str:
        """Run statements, or die."""
        return await self.deaths.at(self, lambda: super(MortalSession, self).run(sql))

    async def fetch(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return rows, or die."""
        return await self.deaths.at(self, lambda: super(MortalSession, self).fetch(sql, parameters))

    async def run_many(self, sql: str, rows: Sequence[Parameters]) -> None:
        """Run statements, or die."""
        await self.deaths.at(self, lambda: super(MortalSession, self).run_many(sql, rows))


class Deaths:
    """When a worker's connection is cut: before a statement, or while it runs."""

    def __init__(self, before: set[int], during: set[int]) -> None:
        self._before = before
        self._during = during
        self.statements = 0

    async def at(self, session: Session, statement: Callable[[], Awaitable[T]]) -> T:
        """Run the next statement, unless it is one to die at."""
        self.statements += 1
        if self.statements in self._before:
            session.abort()
        if self.statements in self._during:
            asyncio.get_running_loop().call_soon(session.abort)
        return await statement()


class MortalWriter(Writer):
    """A writer that loses its connection now and then."""

    def __init__(self, address: Address, deaths: Deaths) -> None:
        super().__init__(address)
        self.deaths = deaths


async def work(
    writer: Writer, batches: Sequence[Sequence[bytes | Message]], *, again: bool = False
) -> Projector:
    """Project batches as a worker does: a batch that cannot be committed is tried again."""
    projector = Projector(shipped(), writer)
    async with writer:
        for batch in batches:
            arrived = arrivals(batch, again=again)
            for _ in range(ATTEMPTS):
                try:
                    await projector.project(arrived)
                    break
                except StoreUnavailable:
                    arrived = arrivals(batch, again=True)
            else:
                pytest.fail("The worker does not come to an end.")
    return projector


async def emptied(database: PostgresDatabase) -> Address:
    """Return the address of a schema whose tables have no rows."""
    address = Address(database.url, schema="any_workers")
    async with Writer(address) as writer:
        if not await writer.noted_versions():
            await create_tables(writer, shipped())
    change(address, "TRUNCATE streams, log, kinds, events")
    return address


def expected_heads(history: Sequence[Message]) -> list[tuple[object, ...]]:
    streams: dict[str, list[tuple[int, str, str]]] = {}
    for message in history:
        streams.setdefault(message["payload"]["event_id"], []).append(position(message))
    return [(each, len(streams[each]), *max(streams[each])) for each in sorted(streams)]


def logged(history: Sequence[Message]) -> list[tuple[str, str]]:
    return sorted((message["payload"]["event_id"], message["id"]) for message in history)


@st.composite
def shares(draw: st.DrawFn, history: list[Message]) -> list[list[list[bytes | Message]]]:
    """Share a history among workers: each message goes to some of them, in any order."""
    workers = draw(st.integers(1, 4))
    takers = [draw(st.sets(st.integers(0, workers - 1), min_size=1)) for _ in history]
    found = []
    for worker in range(workers):
        mine = [m for m, who in zip(history, takers, strict=True) if worker in who]
        found.append(draw(arriving(mine)) if mine else [])
    return found


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the connections of mortal writers be cut."""
    open_ = connection.PostgresWriter._open

    async def opened(self: Writer, *, is_first: bool) -> None:
        await open_(self, is_first=is_first)
        if isinstance(self, MortalWriter) and self._session is not None:
            mortal = MortalSession(self._session._connection)
            mortal.deaths = self.deaths
            self._session = mortal

    monkeypatch.setattr(connection.PostgresWriter, "_open", opened)


class TestRoundTrips:
    @pytest.mark.usefixtures("mortal")
    @pytest.mark.parametrize("are_late", [False, True])
    async def test_do_not_grow_with_the_batch(
        self, shared_database: PostgresDatabase, *, are_late: bool
    ) -> None:
        """A large batch takes as many statements as a small one."""
        trips = {}
        for events in (2, 45):
            address = await emptied(shared_database)
            names = [f"e-{event}" for event in range(events)]
            life = (planned, started, completed)
            batch = [build(name, sequence=n) for n, build in enumerate(life) for name in names]
            before = [started(name, sequence=9) for name in names if are_late]
            deaths = Deaths(set(), set())
            async with projecting_with(MortalWriter(address, deaths)) as projector:
                for each in (before, [started("x")]):
                    await projector.project(arrivals(each))
                first = deaths.statements
                await projector.project(arrivals(batch))
            trips[events] = deaths.statements - first

        # BEGIN, the lock, the log, a savepoint, three statements of handlers, the look for orphans,
        # COMMIT. Late messages ask for sizes, bodies and rows to remember, and remove rows; what is
        # written between two questions needs a savepoint of its own.
        assert trips[45] == trips[2] == (16 if are_late else 9)


class TestAnyWorkers:
    @pytest.mark.usefixtures("mortal")
    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    async def test_give_the_fold_of_each_stream(
        self, shared_database: PostgresDatabase, data: st.DataObject
    ) -> None:
        """Any shares, orders, duplicates, batches and deaths give the oracle's rows."""
        address = await emptied(shared_database)
        history = data.draw(histories)
        moments = st.sets(st.integers(1, 40), max_size=4)
        workers = [
            (Deaths(data.draw(moments), data.draw(moments)), batches, data.draw(st.booleans()))
            for batches in data.draw(shares(history))
        ]

        projectors = await asyncio.gather(
            *(
                work(MortalWriter(address, deaths), batches, again=again)
                for deaths, batches, again in workers
            )
        )

        assert rows(address, EVENTS) == expected_rows(history)
        assert rows(address, LOG) == logged(history)
        assert rows(address, HEADS) == expected_heads(history)
        assert [projector.conflicts for projector in projectors] == [0] * len(projectors)

    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    async def test_write_the_bytes_that_a_file_holds(
        self,
        shared_database: PostgresDatabase,
        tmp_path_factory: pytest.TempPathFactory,
        data: st.DataObject,
    ) -> None:
        """The same messages, in the same batches, give the same rows and the same log."""
        address = await emptied(shared_database)
        file = tmp_path_factory.mktemp("bytes") / "p.db"
        batches = data.draw(arriving(data.draw(histories)))

        for writer in (Writer(address), writer_at(file)):
            async with projecting_with(writer, clock=lambda: "now") as projector:
                for batch in batches:
                    await projector.project(arrivals(batch))

        for table in ("events", "messages", "kinds", "projections"):
            sql = f"SELECT * FROM {table} ORDER BY 1, 2" if table != "kinds" else KINDS
            assert rows(address, sql) == rows(file, sql)

    async def test_never_wait_for_each_other_in_a_circle(
        self, shared_database: PostgresDatabase
    ) -> None:
        """They lock the streams of a batch in one order, so none of them has to try again."""
        address = await emptied(shared_database)

        history, conflicts = await worked_on_together(address, random.Random(1), batch_size=9)

        assert rows(address, EVENTS) == expected_rows(history)
        assert conflicts == 0

    async def test_need_the_lock(
        self, shared_database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without it, they overwrite each other's rows: these tests would notice."""
        monkeypatch.setattr(transaction, "LOCK", WITHOUT_LOCK)
        are_right = []
        for seed in range(20):
            address = await emptied(shared_database)
            history, _ = await worked_on_together(address, random.Random(seed), batch_size=2)
            are_right.append(rows(address, EVENTS) == expected_rows(history))
            if not are_right[-1]:
                break

        assert are_right[-1] is False


WITHOUT_LOCK = """
    WITH opened AS (
        INSERT INTO streams (event_id) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING
    )
    SELECT each, coalesce(messages, 0), head_sequence, head_at, head_id, NULL, NULL
    FROM unnest($1::text[]) AS each LEFT JOIN streams ON event_id = each
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, NULL, table_name, version FROM projections
"""


async def worked_on_together(
    address: Address, rng: random.Random, batch_size: int
) -> tuple[list[Message], int]:
    """Let four workers share the lives of some events, in any order.

    Returns the messages, and how many transactions the database has ended for another.
    """
    history = [
        build(f"e-{event}", id=f"{n}-{build.__name__}", sequence=n)
        for event in range(8)
        for n, build in enumerate([planned, started, completed, cancelled, expired, started] * 3)
    ]
    rng.shuffle(history)
    parts = [history[n::4] for n in range(4)]
    projectors = await asyncio.gather(
        *(
            work(Writer(address), [part[n : n + batch_size] for n in range(0, 36, batch_size)])
            for part in parts
        )
    )
    return history, sum(projector.conflicts for projector in projectors)
