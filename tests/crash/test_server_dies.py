"""PostgreSQL is killed at each statement of a batch; what was acked before must be there after."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest_asyncio

from tests.builders import Message, completed, planned, started
from tests.oracle import expected_rows
from tests.places import rows
from tests.postgres import PostgresDatabase, PostgresNode
from tests.postgres_standby import PostgresStandby
from tests.unit.projecting import EVENTS, LOG, arrivals, project, shipped
from worker.errors import StoreUnavailable
from worker.projector import Projector
from worker.store.postgres.address import Address
from worker.store.postgres.session import Session
from worker.store.postgres.store import Writer
from worker.store.statements import Parameters, Row

T = TypeVar("T")


class DeadlySession(Session):
    """A session whose server is killed while it runs one of its statements."""

    node: PostgresNode
    kill_at: int | str
    statements = 0
    has_killed = False

    async def run(self, sql: str) -> str:
        """Run statements."""
        return await self._during(sql, super().run(sql))

    async def fetch(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return rows."""
        return await self._during(sql, super().fetch(sql, parameters))

    async def run_many(self, sql: str, rows: Sequence[Parameters]) -> None:
        """Run statements."""
        await self._during(sql, super().run_many(sql, rows))

    async def _during(self, sql: str, statement: Awaitable[T]) -> T:
        self.statements += 1
        running = asyncio.ensure_future(statement)
        if self.kill_at in (self.statements, sql):
            # It is on its way, and may have arrived.
            await asyncio.wait({running}, timeout=0)
            await self.node.kill()
            self.has_killed = True
        return await running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def database(postgres_programs: Path) -> AsyncIterator[PostgresDatabase]:
    """Yield a database on a node that may be killed."""
    async with PostgresNode() as node:
        yield await node.create_database()


def batches(number: int) -> tuple[list[Message], list[Message]]:
    """Return messages of events of their own: some to be acked, and some to be held."""
    one, two, three = (f"e-{number}-{each}" for each in range(3))
    acked = [planned(one), planned(two), started(one)]
    return acked, [completed(one), started(two), planned(three)]


async def held(writer: Writer, deadly: DeadlySession, batch: Sequence[Message]) -> bool:
    """Project a batch on a session; return whether it was committed."""
    writer._session = deadly
    try:
        await Projector(shipped(), writer).project(arrivals(batch))
    except StoreUnavailable:
        return False
    finally:
        deadly.kill_at = 0
    return True


def deadly(node: PostgresNode, session: Session, kill_at: int | str) -> DeadlySession:
    """Return a session on the same connection."""
    made = DeadlySession(session._connection)
    made.node, made.kill_at = node, kill_at
    return made


async def again(writer: Writer, batch: Sequence[Message]) -> None:
    """Project a batch again, as the worker does when it is delivered again."""
    await Projector(shipped(), writer).project(arrivals(batch, again=True))


def has_all(address: Address, everything: Sequence[Message]) -> bool:
    """Return whether log and rows are those of these messages."""
    logged = sorted((each["payload"]["event_id"], each["id"]) for each in everything)
    return rows(address, LOG) == logged and rows(address, EVENTS) == expected_rows(everything)


class TestAServerThatIsKilled:
    async def test_at_each_statement_loses_nothing(self, database: PostgresDatabase) -> None:
        """The batch is there once, whether or not its COMMIT was answered."""
        committed, messages = [], []
        address = Address(database.url)
        await project(address, [])
        for number in range(1, 100):
            acked, batch = batches(number)
            messages += acked + batch
            async with Writer(address) as writer:
                await Projector(shipped(), writer).project(arrivals(acked))
                session = deadly(database.node, await writer.session(), number)
                committed.append(await held(writer, session, batch))
                await database.node.start()
                await again(writer, batch)

            assert has_all(address, messages), number
            if not session.has_killed:
                break

        assert committed[0] is False
        assert committed[-1] is True
        assert len(committed) > 6

    async def test_at_its_commit_has_a_standby_with_all_that_was_acked(
        self, postgres_programs: Path
    ) -> None:
        """The worker finds the one that was promoted, and goes on."""
        async with PostgresNode() as primary, PostgresStandby(primary, synchronous=True) as standby:
            database = await primary.create_database()
            places = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
            address = Address(database.url.replace(f"127.0.0.1:{primary.port}", places))
            acked, batch = batches(1)
            await project(address, acked)
            async with Writer(address) as writer:
                session = deadly(primary, await writer.session(), "COMMIT")
                await held(writer, session, batch)
                await standby.promote()
                await again(writer, batch)

            assert session.has_killed
            assert has_all(Address(database.url_at(standby)), acked + batch)
