"""Rebuilds in PostgreSQL, where workers and readers go on meanwhile."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from tests.builders import completed, planned, started
from tests.oracle import expected_rows
from tests.places import change, rows, writer_at
from tests.store.contents import leftovers
from tests.store.test_rebuild import history
from tests.store.test_versions import notes, say
from tests.unit.projecting import arrivals, audited, project, projecting, shipped, verdicts
from tests.unit.projecting import rows as events
from tests.waiting import eventually
from worker import Message, Transaction
from worker.deliveries import Outcome
from worker.errors import StoreUnavailable, WorkerError
from worker.rebuild import Audit, rebuild
from worker.registry import Registry
from worker.store.engines import store_of
from worker.store.postgres import rebuilding
from worker.store.postgres.address import Address
from worker.store.postgres.rebuilding import RebuiltTables
from worker.store.postgres.session import Session
from worker.store.postgres.store import PostgresStore
from worker.store.tables import Schema

NOTES = "SELECT * FROM notes ORDER BY event_id"
WAITING = "SELECT 1 FROM pg_locks WHERE relation = '{}.projections'::regclass AND NOT granted"


async def rebuilt(address: Address, registry: Registry) -> Audit:
    async with writer_at(address) as writer:
        return await rebuild(writer, registry, lambda done, total: None)


def schema(registry: Registry) -> Schema:
    return {each.table: each.schema for each in registry.projections}


def during(registry: Registry, event_id: str, work: Callable[[], Awaitable[Any]]) -> Registry:
    """Do some work once, while a message of this event is folded."""
    said = registry.handlers["said"]
    todo = [work]

    async def works(tx: Transaction, message: Message[Any]) -> None:
        if message.event_id == event_id and todo:
            await todo.pop()()
        await said(tx, message)

    registry.handlers["said"] = works
    return registry


@asynccontextmanager
async def connected(address: Address, name: str = "") -> AsyncIterator[asyncpg.Connection]:
    """Return a connection of somebody who reads the tables."""
    settings = {"search_path": address.schema, "application_name": name}
    connection = await asyncpg.connect(address.url, server_settings=settings)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up the locks sooner than for an operator."""
    monkeypatch.setattr(rebuilding, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(rebuilding, "LOCK_ATTEMPTS", 1)


class TestWritersMeanwhile:
    async def test_are_followed(self, address: Address) -> None:
        """A stream that grows once it was folded, and a new one, are in the new rows."""

        async def grow() -> None:
            await project(address, [say("a", "2"), say("new")], registry=notes(1))

        await project(address, [say("a", "1"), say("b")], registry=notes(1))

        await rebuilt(address, during(notes(2), "b", grow))

        assert rows(address, NOTES) == [("a", "2"), ("b", "x"), ("new", "x")]
        assert (await audited(address, notes(2))).differing == 0

    @pytest.mark.parametrize("seed", [1, 2])
    async def test_lose_nothing(self, address: Address, seed: int) -> None:
        """Two workers of the same version write while one rebuild follows the other."""
        ids = [f"e-{number:03}" for number in range(40)]
        lives = [[started(e, sequence=2), planned(e, sequence=1), completed(e)] for e in ids]
        messages = [each for life in lives for each in life]
        await project(address)
        audits: list[Audit] = []

        async def write(order: random.Random) -> None:
            left = order.sample(messages, len(messages))
            async with projecting(address) as projector:
                while left:
                    some, left = left[: (size := order.randint(1, 9))], left[size:]
                    outcomes = await projector.project(arrivals(some))
                    assert not [outcome for outcome in outcomes if outcome.rejected]

        writing = [asyncio.create_task(write(random.Random(seed * 10 + n))) for n in (1, 2)]
        while not all(task.done() for task in writing):
            audits.append(await rebuilt(address, shipped()))
        await asyncio.gather(*writing)

        assert events(address) == expected_rows(messages)
        assert rows(address, "SELECT count(*) FROM log") == [(len(messages),)]
        assert [audit.differing for audit in audits] == [0] * len(audits)
        assert len(audits) > 1

    async def test_of_another_version_hold(self, address: Address) -> None:
        """They write until the tables are replaced, and nothing afterwards."""
        async with projecting(address, notes(1)) as old:
            await old.project(arrivals([say("a")], notes(1)))
            await rebuilt(address, notes(2, column="more"))
            with pytest.raises(StoreUnavailable, match="Another release has rebuilt the tables"):
                await old.project(arrivals([say("a", "2"), say("b")], notes(1)))

        async with projecting(address, notes(2, column="more")) as new:
            outcomes = await new.project(arrivals([say("b")], notes(2)))

        assert verdicts(outcomes) == ["applied"]
        assert rows(address, NOTES) == [("a", "x", 2), ("b", "x", 2)]
        assert rows(address, "SELECT count(*) FROM log") == [(2,)]

    async def test_that_have_begun_are_waited_for(
        self, address: Address, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a transaction of the old version commits meanwhile is folded by the new one."""
        await project(address, [say("a")], registry=notes(1))
        has_begun = asyncio.Event()
        writing: list[asyncio.Task[list[Outcome]]] = []
        lock = RebuiltTables._lock

        async def be_waited_for() -> None:
            has_begun.set()
            await eventually(lambda: rows(address, WAITING.format(address.schema)))

        async def lock_when_a_writer_has_begun(fresh: RebuiltTables, tables: list[str]) -> None:
            if not writing:
                registry = during(notes(1), "c", be_waited_for)
                work = project(address, [say("b"), say("c")], registry=registry)
                writing.append(asyncio.create_task(work))
                await has_begun.wait()
            await lock(fresh, tables)

        monkeypatch.setattr(RebuiltTables, "_lock", lock_when_a_writer_has_begun)
        await rebuilt(address, notes(2, column="more"))

        assert verdicts(await writing[0]) == ["applied", "applied"]
        assert rows(address, NOTES) == [("a", "x", 2), ("b", "x", 2), ("c", "x", 2)]

    async def test_are_not_blocked_by_one_that_is_stopped(
        self, address: Address, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server ends a rebuild that is stopped while it locks the writers out."""
        monkeypatch.setattr(rebuilding, "IDLE_WHILE_LOCKING", "100ms")
        await project(address, [say("a")], registry=notes(1))
        async with writer_at(address) as writer, await writer.rebuilding(schema(notes(1))) as fresh:
            assert [len(batch) async for batch in fresh.streams()] == [1]
            assert [len(batch) async for batch in fresh.grown_streams()] == []
            outcomes = await project(address, [say("b")], registry=notes(1))
            with pytest.raises(WorkerError):
                await fresh.put_in_place({"notes": 1})

        assert verdicts(outcomes) == ["applied"]
        assert rows(address, NOTES) == [("a", "x"), ("b", "x")]


class TestReadersMeanwhile:
    async def test_see_the_rows_of_one_version(self, address: Address) -> None:
        """Each query finds all rows, and all from the same version."""
        many = 300
        counted = """
            SELECT count(*), min(to_jsonb(notes) ->> 'more'), max(to_jsonb(notes) ->> 'more')
            FROM notes
        """
        await project(address, [say(f"e-{n}") for n in range(many)], registry=notes(1))
        seen: set[tuple[object, ...]] = set()

        async def read() -> None:
            async with connected(address) as reader:
                while (many, "2", "2") not in seen:
                    seen.add(tuple(await reader.fetchrow(counted) or ()))

        reading = asyncio.create_task(read())
        await eventually(lambda: seen)
        await rebuilt(address, notes(2, column="more"))
        await reading

        assert seen == {(many, None, None), (many, "2", "2")}

    @pytest.mark.usefixtures("impatient")
    async def test_that_stay_are_named(self, address: Address) -> None:
        """A rebuild does not keep others waiting behind a long query; it can be tried again."""
        await project(address, [say("a")], registry=notes(1))
        async with connected(address, "a long report") as reader, reader.transaction():
            await reader.fetch("SELECT * FROM notes")
            with pytest.raises(StoreUnavailable, match=r"hold them .*: a long report \(user "):
                await rebuilt(address, notes(2, column="more"))
            await project(address, [say("b")], registry=notes(1))
        await rebuilt(address, notes(2, column="more"))

        assert rows(address, NOTES) == [("a", "x", 2), ("b", "x", 2)]

    @pytest.mark.usefixtures("impatient")
    async def test_that_audit_are_named(self, address: Address) -> None:
        """The snapshot of an audit could not show new tables, so they have to wait."""
        await project(address, [say("a")], registry=notes(1))
        async with store_of(address).auditing(schema(notes(1))) as fresh:
            with pytest.raises(StoreUnavailable, match="projection-worker audit"):
                await rebuilt(address, notes(1))
            assert await fresh.count_messages() == 1

    @pytest.mark.usefixtures("impatient")
    async def test_on_a_snapshot_see_the_rows(self, address: Address) -> None:
        """An old snapshot would show the new tables as empty, so these wait for its end."""
        await project(address, [say("a")], registry=notes(1))
        async with PostgresStore(address).reader() as reader, reader.snapshot() as fetch_all:
            with pytest.raises(StoreUnavailable, match="projection-worker reader"):
                await rebuilt(address, notes(1))
            (seen,) = await fetch_all("SELECT * FROM notes", ())
        await rebuilt(address, notes(1))

        assert tuple(seen) == ("a", "x")


class TestASecondRebuild:
    async def test_waits_for_the_first(self, address: Address) -> None:
        """Several workers of a new version may start at once: one of them rebuilds."""
        await project(address, [say("a")], registry=notes(1))
        async with writer_at(address) as writer, await writer.rebuilding(schema(notes(2))):
            with pytest.raises(StoreUnavailable, match="Another rebuild of these tables"):
                await rebuilt(address, notes(2))
        await rebuilt(address, notes(2))

        assert rows(address, "SELECT version FROM projections") == [(2,)]


class TestCreation:
    async def test_is_done_once(self, address: Address) -> None:
        """Workers that start at the same time on a new database all find the tables."""
        async with writer_at(address):
            pass
        together = [project(address, [say(f"e-{n}")], registry=notes(1)) for n in range(4)]

        outcomes = await asyncio.gather(*together)

        assert [verdicts(each) for each in outcomes] == [["applied"]] * 4
        assert rows(address, "SELECT count(*) FROM notes") == [(4,)]

    async def test_drops_no_row_that_was_written_meanwhile(self, address: Address) -> None:
        """A worker that found the database empty looks again once it has locked the others out."""
        await project(address, [say("a")], registry=notes(1))
        async with writer_at(address) as writer:
            await writer.create_tables(schema(notes(1)), notes(1).versions)
            with pytest.raises(StoreUnavailable, match="Another worker has begun"):
                await writer.create_tables(schema(notes(2)), notes(2).versions)

        assert rows(address, NOTES) == [("a", "x")]


class Killed(Exception):
    """Stands for the end of the process."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], bool]:
    """End the connection of a rebuild before one of its statements; say whether it came to it."""
    left = [number]

    def counting(name: str) -> None:
        statement = getattr(Session, name)

        async def run(session: Session, *arguments: Any) -> Any:
            if left[0] == 0:
                session.abort()
                raise Killed
            left[0] -= 1
            return await statement(session, *arguments)

        monkeypatch.setattr(Session, name, run)

    for name in ("run", "ask", "fetch", "run_many"):
        counting(name)
    return lambda: left[0] == 0


STATE = """
    SELECT (SELECT array_agg((relname, oid)::text ORDER BY relname) FROM pg_class
            WHERE relnamespace = '{0}'::regnamespace),
        (SELECT array_agg(events::text ORDER BY event_id) FROM {0}.events),
        (SELECT count(*) FROM pg_class WHERE relnamespace = '{1}'::regnamespace)
"""


class TestKill:
    async def test_at_each_statement_leaves_the_old_rows(self, address: Address) -> None:
        """The tables are the old or the new ones, never a mixture, and nothing is left beside."""
        messages = history(3)
        await project(address, messages)
        change(address, "UPDATE events SET status = 'tampered' WHERE event_id = 'e-00001'")
        state = STATE.format(address.schema, address.rebuild_schema)
        is_killed, number = True, 0
        async with writer_at(address) as writer, connected(address) as reader:
            before = await reader.fetchrow(state)
            while is_killed:
                with pytest.MonkeyPatch.context() as patch:
                    comes_to_it = kill_at(patch, number)
                    try:
                        await rebuild(writer, shipped(), lambda done, total: None)
                        is_killed = False
                    except (Killed, WorkerError):
                        assert comes_to_it()
                        await eventually(lambda: same(reader, state, before))
                number += 1

        assert number > 40
        assert events(address) == expected_rows(messages)
        assert not leftovers(address)


async def same(reader: asyncpg.Connection, state: str, before: asyncpg.Record | None) -> bool:
    """Return whether the database is as before; it is once the server has rolled back."""
    return await reader.fetchrow(state) == before
