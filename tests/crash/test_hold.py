import resource
from pathlib import Path

import pytest

from tests.builders import planned, started
from tests.database import count_log, locked, query, rows
from tests.oracle import expected_rows
from tests.processes import StartWorker, WorkerProcess
from tests.proxy import Proxy
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.waiting import eventually

MESSAGES = [make(f"e-{number}") for number in range(50) for make in (planned, started)]


@pytest.fixture
async def worker(start_worker: StartWorker) -> WorkerProcess:
    """Return a worker that consumes."""
    running = await start_worker()
    await running.wait_for_log("connected")
    return running


async def require_whole(queues: Queues, database: Path, worker: WorkerProcess) -> None:
    """Wait until the worker has resumed; check that nothing was lost, rejected or repeated."""
    await worker.wait_for_log("resumed")
    await worker.wait_until_settled(len(MESSAGES))
    assert len(worker.said("holding")) == len(worker.said("connected")) == 1
    assert worker.total("applied") == worker.settled == len(MESSAGES)
    assert rows(database) == expected_rows(MESSAGES)
    assert (await queues.depth()).ready == 0
    assert await queues.take_dead_letters() == []


class TestALockedDatabase:
    async def test_is_waited_for(
        self, queues: Queues, database: Path, worker: WorkerProcess
    ) -> None:
        """A lock that lasts longer than SQLite waits gives one line; the batch stays unacked."""
        with locked(database):
            await queues.publish(MESSAGES)
            line = await worker.wait_for_log("holding")
            assert await worker.outlives(1.5)
            assert worker.settled == 0

        await require_whole(queues, database, worker)
        assert "locked" in line["reason"]
        assert worker.said("resumed")[0]["attempts"] >= 1

    async def test_for_a_moment_is_not_worth_a_word(
        self, queues: Queues, database: Path, worker: WorkerProcess
    ) -> None:
        """SQLite itself waits for a second."""
        with locked(database):
            await queues.publish(MESSAGES)
            assert await worker.outlives(0.5)
            assert worker.settled == 0
        await worker.wait_until_settled(len(MESSAGES))

        assert rows(database) == expected_rows(MESSAGES)
        assert worker.said("holding") == []

    async def test_that_outlives_the_worker_costs_nothing(
        self, queues: Queues, database: Path, worker: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """Nothing is acked that is not committed: a kill leaves every message to the next one."""
        with locked(database):
            await queues.publish(MESSAGES)
            await worker.wait_for_log("holding")
            await worker.kill()
        assert await queues.left() == len(MESSAGES)

        following = await start_worker()
        await following.wait_until_settled(len(MESSAGES))

        assert following.total("applied") == len(MESSAGES)
        assert rows(database) == expected_rows(MESSAGES)

    async def test_does_not_hide_that_the_session_is_lost(
        self, queues: Queues, database: Path, node: RabbitMQNode, worker: WorkerProcess
    ) -> None:
        """The broker has the batch again, one line says so, and the next session receives it."""
        with locked(database):
            await queues.publish(MESSAGES)
            await worker.wait_for_log("holding")
            await node.ctl("close_all_connections", "by an operator")
            line = await worker.wait_for_log("connection_lost")
        await worker.wait_until_settled(len(MESSAGES))

        assert "by an operator" in line["reason"]
        assert rows(database) == expected_rows(MESSAGES)


class TestACommitThatOutlivesItsSession:
    async def test_is_followed_by_another_session(
        self, queues: Queues, database: Path, proxy: Proxy, start_worker: StartWorker
    ) -> None:
        """The connection is cut during the commit: no ack, no crash, no loss."""
        await proxy.listen()
        worker = await start_worker(amqp_url=proxy.url)
        await worker.wait_for_log("connected")
        # The first message opens the window.
        await queues.publish(MESSAGES[:1])
        await worker.wait_until_settled(1)

        with locked(database):
            await queues.publish(MESSAGES[1:])
            await eventually(lambda: nothing_ready(queues))
            proxy.cut()
        await worker.wait_for_log("connected", times=2)
        await eventually(lambda: nothing_left(queues, worker))

        assert worker.said("connection_lost")
        assert rows(database) == expected_rows(MESSAGES)


async def nothing_ready(queues: Queues) -> bool:
    return (await queues.depth()).ready == 0


async def nothing_left(queues: Queues, worker: WorkerProcess) -> bool:
    return worker.settled >= len(MESSAGES) and await nothing_ready(queues)


class TestAFullDisk:
    async def test_is_waited_for(
        self, queues: Queues, database: Path, worker: WorkerProcess
    ) -> None:
        """While the worker's files may not grow, the batch is held; then it is committed."""
        unlimited = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1, unlimited[1]))
        await queues.publish(MESSAGES)
        line = await worker.wait_for_log("holding")
        assert count_log(database) == 0

        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, unlimited)

        await require_whole(queues, database, worker)
        assert "disk" in line["reason"] + line["hint"]
        assert query(database, "PRAGMA integrity_check") == [("ok",)]
