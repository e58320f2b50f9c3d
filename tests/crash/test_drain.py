import signal
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import asyncpg
import pytest

from tests.builders import planned, started
from tests.database import locked, log, rows
from tests.histories import distinct, histories
from tests.oracle import expected_rows
from tests.postgres import PostgresDatabase
from tests.processes import StartWorker, WorkerProcess, blocks
from tests.proxy import BASIC_ACK, Proxy
from tests.queues import Queues, queues_on
from tests.waiting import eventually, patiently

# The promised time. Apart from the test of the standby, no other test checks a time.
PROMISED_SECONDS = 5.0
WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
NAMES = ("SIGTERM", "SIGINT")


async def drains(worker: WorkerProcess, number: signal.Signals = signal.SIGTERM) -> bool:
    """Send a signal; return whether the worker ends as it should, with code 0 and in time."""
    worker.send(number)
    async with patiently(PROMISED_SECONDS):
        return await worker.exit_code() == 0


async def settled(
    partitioned: Queues, database: PostgresDatabase, start_worker: StartWorker
) -> WorkerProcess:
    """Return a worker on PostgreSQL that has settled its first message, of event e-1."""
    worker = await start_worker(**partitioned.settings, database=database.url, partitions=2)
    await worker.wait_for_log("connected")
    await partitioned.publish([planned("e-1")])
    await worker.wait_until_settled(1)
    return worker


@pytest.fixture
async def partitioned(broker_url: str) -> AsyncIterator[Queues]:
    """Hold the queues of a worker on PostgreSQL."""
    async with queues_on(broker_url, 2) as queues:
        yield queues


@pytest.fixture
async def open_proxy(proxy: Proxy) -> Proxy:
    await proxy.listen()
    return proxy


class TestADrain:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=NAMES)
    async def test_before_the_worker_has_begun_is_like_any_other(
        self, start_worker: StartWorker, number: signal.Signals
    ) -> None:
        """A signal that arrives while Python is still importing takes effect later."""
        worker = await start_worker()
        await eventually(lambda: blocks(worker.pid, number))
        assert worker.lines == []

        assert await drains(worker, number)

        events = [line["event"] for line in worker.lines]
        assert sorted(events) == ["draining", "health_served", "starting", "stopped"]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=NAMES)
    async def test_under_load_loses_and_repeats_nothing(
        self, queues: Queues, database: Path, start_worker: StartWorker, number: signal.Signals
    ) -> None:
        """What was committed is acked, and everything else is still in the queue."""
        published = histories(Random(number), events=500)
        await queues.declare()
        await queues.publish(published)
        first = await start_worker(batch_size=5, prefetch=50)
        await first.wait_until_settled(100)

        assert await drains(first, number)
        left = await queues.left()

        assert left > 0
        assert first.settled + left == len(published)
        second = await start_worker()
        await second.wait_until_settled(left)
        assert rows(database) == expected_rows(published)
        assert log(database) == distinct(published)
        both = first.total("duplicate") + second.total("duplicate")
        assert both == len(published) - len(distinct(published))

    async def test_while_idle_is_told_in_two_lines(self, start_worker: StartWorker) -> None:
        """A worker without work ends at once, and nothing goes wrong."""
        worker = await start_worker()
        await worker.wait_for_log("connected")

        assert await drains(worker)

        events = [line["event"] for line in worker.lines]
        assert events == ["starting", "health_served", "connected", "draining", "stopped"]

    async def test_while_the_database_is_locked_leaves_the_batch(
        self, queues: Queues, database: Path, start_worker: StartWorker
    ) -> None:
        """The drain does not wait for the lock; the broker keeps what could not be committed."""
        worker = await start_worker()
        await worker.wait_for_log("connected")

        with locked(database):
            await queues.publish([planned("e-1")])
            await worker.wait_for_log("holding")
            assert await drains(worker)

        assert await queues.left() == 1
        assert log(database) == []

    async def test_while_standing_by_changes_nothing(self, start_worker: StartWorker) -> None:
        """A standby has nothing to finish, and the first worker goes on."""
        first = await start_worker()
        await first.wait_for_log("connected")
        second = await start_worker()
        await second.wait_for_log("standing_by")

        assert await drains(second)

        assert second.said("connected") == []
        assert first.said("draining") == []

    async def test_while_the_broker_is_absent_ends(
        self, proxy: Proxy, start_worker: StartWorker
    ) -> None:
        """A worker that waits for its broker can end without it."""
        worker = await start_worker(amqp_url=proxy.url)
        await worker.wait_for_log("connection_lost")

        assert await drains(worker)


class TestADrainWithPostgreSQL:
    async def test_while_another_session_has_the_lock_leaves_the_batch(
        self, partitioned: Queues, postgres_database: PostgresDatabase, start_worker: StartWorker
    ) -> None:
        """The drain does not wait for whoever locks the stream."""
        worker = await settled(partitioned, postgres_database, start_worker)
        locking = await asyncpg.connect(postgres_database.url)
        async with locking.transaction():
            await locking.execute("SELECT FROM projection.streams FOR UPDATE")
            await partitioned.publish([started("e-1")])
            await eventually(lambda: postgres_database.query(WAITING))

            assert await drains(worker)

        await locking.close()
        assert await partitioned.left() == 1

    async def test_while_the_server_is_frozen_leaves_the_batch(
        self, partitioned: Queues, postgres_database: PostgresDatabase, start_worker: StartWorker
    ) -> None:
        """Nor for a server that answers nothing."""
        worker = await settled(partitioned, postgres_database, start_worker)
        postgres_database.node.freeze()
        try:
            await partitioned.publish([started("e-1")])
            await partitioned.until(lambda depth: depth.ready == 0)

            assert await drains(worker)
        finally:
            postgres_database.node.thaw()

        assert await partitioned.left() == 1


class TestADrainIntoABlackHole:
    async def test_while_it_consumes_ends(
        self, queues: Queues, open_proxy: Proxy, start_worker: StartWorker
    ) -> None:
        """A peer that accepts everything and answers nothing cannot stop the worker from ending."""
        worker = await start_worker(amqp_url=open_proxy.url)
        await worker.wait_for_log("connected")
        open_proxy.stall()

        assert await drains(worker)

    async def test_while_it_connects_ends(
        self, open_proxy: Proxy, start_worker: StartWorker
    ) -> None:
        """A peer that does not answer the greeting cannot, either."""
        open_proxy.stall()
        worker = await start_worker(amqp_url=open_proxy.url)
        await eventually(lambda: open_proxy.connections)

        assert await drains(worker)

    async def test_with_work_at_hand_commits_it(
        self, queues: Queues, database: Path, open_proxy: Proxy, start_worker: StartWorker
    ) -> None:
        """Messages that could not be acked are redelivered and recognized as duplicates."""
        await queues.declare()
        await queues.publish([only := planned("e-1")])
        open_proxy.swallows = BASIC_ACK
        first = await start_worker(amqp_url=open_proxy.url)
        await first.wait_until_settled(1)
        open_proxy.stall()
        assert await drains(first)
        open_proxy.cut()

        second = await start_worker()
        await second.wait_until_settled(1)

        assert second.total("duplicate") == 1
        assert rows(database) == expected_rows([only])


class TestASecondSignal:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=NAMES)
    async def test_ends_it_at_once(
        self, open_proxy: Proxy, start_worker: StartWorker, number: signal.Signals
    ) -> None:
        """An operator who does not want to wait for the drain does not have to."""
        worker = await start_worker(amqp_url=open_proxy.url)
        await worker.wait_for_log("connected")
        open_proxy.stall()
        worker.send(signal.SIGTERM)
        await worker.wait_for_log("draining")

        worker.send(number)

        assert await worker.exit_code() == 128 + number
        assert worker.said("ended_at_once", signal=number.name)
        assert worker.said("stopped") == []
