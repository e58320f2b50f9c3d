"""A worker is ready when it is the queue's active consumer, and says so when it is not."""

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from aio_pika.abc import AbstractIncomingMessage

from tests.builders import planned
from tests.database import count_log, rows
from tests.health import asking, read, until_not_ready, until_ready
from tests.oracle import expected_rows
from tests.processes import StartWorker, WorkerProcess
from tests.proxy import Proxy
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode


@asynccontextmanager
async def rival(queues: Queues) -> AsyncIterator[None]:
    """Be the queue's active consumer during the block, and ack nothing."""

    async def keep(_: AbstractIncomingMessage) -> None:
        pass

    async with queues.channel() as channel:
        queue = await channel.get_queue(queues.name)
        await queue.consume(keep)
        yield


@pytest.fixture
async def waiting(
    queues: Queues, proxy: Proxy, start_worker: StartWorker
) -> AsyncIterator[WorkerProcess]:
    """Return a worker behind a proxy that stands by for a consumer that stays."""
    await queues.declare()
    await proxy.listen()
    async with rival(queues):
        worker = await start_worker(amqp_url=proxy.url)
        await worker.wait_for_log("standing_by")
        yield worker


class TestAnotherConsumerOnTheQueue:
    async def test_is_waited_for(
        self, queues: Queues, database: Path, start_worker: StartWorker
    ) -> None:
        """One line when the wait begins, one when it ends; then the worker consumes what waits."""
        await queues.declare()
        async with rival(queues):
            worker = await start_worker()
            line = await worker.wait_for_log("standing_by")
            await queues.publish([only := planned("e-1")])
            assert worker.said("connected") == []
        await worker.wait_until_settled(1)

        assert queues.name in line["reason"]
        assert [len(worker.said(event)) for event in ("standing_by", "taking_over")] == [1, 1]
        assert rows(database) == expected_rows([only])

    async def test_is_reported_as_a_standby(self, queues: Queues, waiting: WorkerProcess) -> None:
        """It is not ready, with the reason, but live; the metric says the same."""
        ask = asking(waiting)
        (served,) = waiting.said("health_served")

        reason = await until_not_ready(ask)
        lives = await ask("/livez")
        metrics = await asyncio.to_thread(read, f"{served['url']}/metrics")

        assert reason.startswith("The worker is standing by.")
        assert queues.name in reason
        assert lives == (True, "The worker is standing by.")
        assert 'projection_state{state="standing_by"} 1.0' in metrics
        assert 'projection_state{state="consuming"} 0.0' in metrics
        assert "projection_sessions_opened_total 1.0" in metrics

    async def test_is_waited_for_no_longer_than_until_a_signal(
        self, waiting: WorkerProcess
    ) -> None:
        """A drain has nothing to wait for."""
        waiting.send(signal.SIGTERM)

        assert await waiting.exit_code() == 0
        assert waiting.said("taking_over") == []

    async def test_is_waited_for_again_after_a_cut(
        self, proxy: Proxy, waiting: WorkerProcess
    ) -> None:
        """The session ends as a consuming one does, and the next one stands by."""
        proxy.cut()

        await waiting.wait_for_log("connection_lost")
        await waiting.wait_for_log("standing_by", times=2)

        assert waiting.said("connected") == []

    async def test_is_waited_for_longer_than_an_opening_may_take(
        self, proxy: Proxy, waiting: WorkerProcess
    ) -> None:
        """A rival does not count as a silent broker, so the session goes on."""
        assert await waiting.outlives(12)

        assert waiting.said("connection_lost") == []
        assert proxy.connections == 3

    async def test_whose_queue_is_deleted_is_waited_for_no_more(
        self, queues: Queues, node: RabbitMQNode, waiting: WorkerProcess
    ) -> None:
        """A missing queue is an error for a standby, too."""
        await node.ctl("delete_queue", queues.name)

        assert await waiting.exit_code() == 1
        (line,) = waiting.said("failed")
        assert queues.name in line["reason"]


class TestAReconnection:
    async def test_while_the_broker_believes_in_the_old_connection_is_not_ready(
        self, queues: Queues, database: Path, proxy: Proxy, start_worker: StartWorker
    ) -> None:
        """The old connection's consumer holds the queue; when it ends, the worker consumes."""
        await proxy.listen()
        worker = await start_worker(amqp_url=proxy.url)
        await worker.wait_for_log("connected")
        proxy.hangs_up = True
        proxy.cut()
        await worker.wait_for_log("connection_lost")
        await queues.left()

        async with rival(queues):
            proxy.hangs_up = False
            await worker.wait_for_log("standing_by")
            await until_not_ready(asking(worker))
        await worker.wait_for_log("connected", times=2)
        await queues.publish([only := planned("e-1")])
        await worker.wait_until_settled(1)

        assert rows(database) == expected_rows([only])
        await until_ready(asking(worker))


class TestACopyOfTheFile:
    async def test_stands_by_for_the_first_and_takes_over(
        self, queues: Queues, database: Path, tmp_path: Path, start_worker: StartWorker
    ) -> None:
        """A copy has the same identity, so it is not refused; its rows may be wrong."""
        first = await start_worker()
        await first.wait_for_log("connected")
        copied = tmp_path / "copy.db"
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copied)) as copy:
            source.backup(copy)
        second = await start_worker(database=copied)
        await second.wait_for_log("standing_by")

        await queues.publish([planned("e-1")])
        await first.wait_until_settled(1)
        await first.kill()
        await second.wait_for_log("connected")
        await queues.publish([planned("e-2")])
        await second.wait_until_settled(1)

        assert (count_log(database), count_log(copied)) == (1, 1)
