from pathlib import Path

import pytest

from tests.builders import completed, planned, started
from tests.database import count_log, rows
from tests.oracle import expected_rows
from tests.processes import StartWorker, WorkerProcess
from tests.proxy import BASIC_CONSUME, Proxy
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.waiting import eventually


@pytest.fixture
async def worker(start_worker: StartWorker) -> WorkerProcess:
    """Give a worker that consumes."""
    running = await start_worker()
    await running.wait_for_log("connected")
    return running


class TestAnAbsentBroker:
    async def test_is_waited_for(
        self, queues: Queues, database: Path, proxy: Proxy, start_worker: StartWorker
    ) -> None:
        """One line says that nobody answers, however often it tries; then it consumes."""
        worker = await start_worker(amqp_url=proxy.url)
        await worker.wait_for_log("connection_lost")

        proxy.hangs_up = True
        await proxy.listen()
        await eventually(lambda: proxy.connections >= 2)
        proxy.hangs_up = False
        await worker.wait_for_log("connected")
        await queues.publish([only := planned("e-1")])
        await worker.wait_until_settled(1)

        assert len(worker.said("connection_lost")) == 1
        assert rows(database) == expected_rows([only])


class TestABrokerThatIsSilent:
    async def test_is_given_up_and_tried_again(
        self, queues: Queues, database: Path, proxy: Proxy, start_worker: StartWorker
    ) -> None:
        """It answers a connection, but no consumer, as one whose queue has no leader yet."""
        proxy.swallows = BASIC_CONSUME
        await proxy.listen()
        worker = await start_worker(amqp_url=proxy.url)
        line = await worker.wait_for_log("connection_lost")
        assert worker.said("connected") == []

        proxy.swallows = None
        await worker.wait_for_log("connected")
        await queues.publish([only := planned("e-1")])
        await worker.wait_until_settled(1)

        assert "did not answer" in line["reason"]
        assert rows(database) == expected_rows([only])


class TestALostSession:
    async def test_that_the_broker_closed_is_followed_by_another(
        self, queues: Queues, database: Path, node: RabbitMQNode, worker: WorkerProcess
    ) -> None:
        """One line says why; what is published from then on is projected."""
        await node.ctl("close_all_connections", "by an operator")

        await worker.wait_for_log("connected", times=2)
        await queues.publish([only := planned("e-1")])
        await worker.wait_until_settled(1)

        (line,) = worker.said("connection_lost")
        assert "by an operator" in line["reason"]
        assert line["hint"]
        assert rows(database) == expected_rows([only])

    async def test_that_was_cut_again_and_again_leaves_nothing_behind(
        self, queues: Queues, database: Path, proxy: Proxy, start_worker: StartWorker
    ) -> None:
        """Each loss is followed by a session of the same two connections."""
        messages = [planned("e-1"), started("e-1"), completed("e-1")]
        await proxy.listen()
        worker = await start_worker(amqp_url=proxy.url)
        for number, message in enumerate(messages, 1):
            await worker.wait_for_log("connected", times=number)
            await queues.publish([message])
            await worker.wait_until_settled(number)
            proxy.cut()
        await worker.wait_for_log("connected", times=4)

        assert proxy.connections == 8
        assert (await queues.depth()).consumers == 1
        assert rows(database) == expected_rows(messages)

    async def test_whose_queue_was_deleted_is_followed_by_another(
        self, queues: Queues, database: Path, node: RabbitMQNode, worker: WorkerProcess
    ) -> None:
        """The broker only cancels the consumer; that is a fault and no exit."""
        await node.ctl("delete_queue", queues.name)

        await worker.wait_for_log("connected", times=2)
        await queues.publish([only := planned("e-1")])
        await worker.wait_until_settled(1)

        (line,) = worker.said("connection_lost")
        assert "cancelled the consumer" in line["reason"]
        assert rows(database) == expected_rows([only])


class TestARestartedBroker:
    async def test_is_waited_for(
        self, queues: Queues, database: Path, node: RabbitMQNode, worker: WorkerProcess
    ) -> None:
        """Shut down or killed: the worker consumes again, and nothing confirmed is lost."""
        messages = [planned("e-1"), started("e-1"), completed("e-1")]
        # In this order: killed within seconds of a quorum queue's birth, RabbitMQ 3.10 may never
        # elect a leader for it again (rabbitmq-server#10070).
        for number, end in enumerate((node.stop, node.kill), 1):
            await queues.publish([messages[number - 1]])
            await worker.wait_until_settled(number)
            await end()
            await worker.wait_for_log("connection_lost", times=number)
            await node.start()
            await worker.wait_for_log("connected", times=number + 1)
        await queues.publish(messages[2:])
        await eventually(lambda: count_log(database) == 3)

        assert len(worker.said("connection_lost")) == 2
        assert rows(database) == expected_rows(messages)


class TestABlockedDeadLetter:
    async def test_in_an_alarm_is_waited_for(
        self, queues: Queues, database: Path, node: RabbitMQNode, start_worker: StartWorker
    ) -> None:
        """It stays unacked until the broker has confirmed its copy; lines say so."""
        await queues.declare()
        await queues.publish([b"broken", good := planned("e-1")])
        await node.ctl("set_vm_memory_high_watermark", "0.000001")
        try:
            worker = await start_worker()
            await worker.wait_for_log("blocked")

            assert rows(database) == expected_rows([good])
            assert worker.settled == 0
        finally:
            await node.ctl("set_vm_memory_high_watermark", "0.4")
        await worker.wait_for_log("unblocked")
        await worker.wait_until_settled(2)

        (letter,) = await queues.take_dead_letters()
        assert letter.body == b"broken"
        assert len(worker.said("blocked")) == len(worker.said("connected")) == 1

    async def test_without_a_queue_for_it_is_waited_for(
        self, queues: Queues, node: RabbitMQNode, worker: WorkerProcess
    ) -> None:
        """A dead letter that nobody would keep is not acked into nothing."""
        await node.ctl("delete_queue", queues.dead_letters)
        await queues.publish([b"broken"])
        line = await worker.wait_for_log("blocked")
        assert worker.settled == 0

        await queues.declare()
        await worker.wait_for_log("unblocked")
        await worker.wait_until_settled(1)

        (letter,) = await queues.take_dead_letters()
        assert letter.body == b"broken"
        assert queues.dead_letters in line["reason"]

    async def test_that_is_still_blocked_at_the_end_stays_in_the_queue(
        self, queues: Queues, node: RabbitMQNode, worker: WorkerProcess
    ) -> None:
        """A drain does not wait for it and does not lose it."""
        await node.ctl("delete_queue", queues.dead_letters)
        await queues.publish([b"broken"])
        await worker.wait_for_log("blocked")

        worker.terminate()

        assert await worker.exit_code() == 0
        assert worker.said("dead_lettered") == []
        assert await queues.left() == 1
