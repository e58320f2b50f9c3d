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

# More than the buffers between two processes hold.
LARGE = bytes(16 * 1024 * 1024)


@pytest.fixture
async def worker(start_worker: StartWorker) -> WorkerProcess:
    """Return a worker that consumes."""
    running = await start_worker()
    await running.wait_for_log("connected")
    return running


class TestAnAbsentBroker:
    async def test_is_waited_for(
        self, queues: Queues, database: Path, proxy: Proxy, start_worker: StartWorker
    ) -> None:
        """One line says that nobody answers, however often it retries; then it consumes."""
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
        """It accepts a connection but no consumer, like a node whose queue has no leader yet."""
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
        """One line says why, and messages published from then on are projected."""
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
        """Each loss is followed by a session of the same three connections."""
        messages = [planned("e-1"), started("e-1"), completed("e-1")]
        await proxy.listen()
        worker = await start_worker(amqp_url=proxy.url)
        for number, message in enumerate(messages, 1):
            await worker.wait_for_log("connected", times=number)
            await queues.publish([message])
            await worker.wait_until_settled(number)
            proxy.cut()
        await worker.wait_for_log("connected", times=4)

        assert proxy.connections == 12
        # The consumer with the narrow window may still exist beside the wide one.
        assert (await queues.depth()).consumers <= 2
        assert rows(database) == expected_rows(messages)

    async def test_whose_queue_was_deleted_waits_until_it_exists_again(
        self,
        queues: Queues,
        database: Path,
        node: RabbitMQNode,
        worker: WorkerProcess,
        start_command: StartWorker,
    ) -> None:
        """The worker does not create it silently: what was published without it is lost."""
        await node.ctl("delete_queue", queues.name)
        lost = await worker.wait_for_log("connection_lost")
        refused = await worker.wait_for_log("connection_refused")
        await worker.wait_for_log("connection_failed")

        assert await (await start_command("topology", "apply")).exit_code() == 0
        await worker.wait_for_log("connected", times=2)
        await queues.publish([only := planned("e-1")])
        await worker.wait_until_settled(1)

        assert "the queue was deleted" in lost["reason"]
        assert "unsettled_seconds" not in lost
        assert queues.name in refused["reason"]
        assert "topology apply" in refused["hint"]
        assert len(worker.said("connection_lost")) == len(worker.said("connection_refused")) == 1
        assert rows(database) == expected_rows([only])

    async def test_for_dead_letters_alone_is_noticed_before_there_is_one(
        self, queues: Queues, node: RabbitMQNode, worker: WorkerProcess
    ) -> None:
        """The session ends when the publishing connection does, even if nothing is published."""
        names = await node.ctl("list_connections", "pid", "client_properties")
        (line,) = [each for each in names.splitlines() if f"{queues.dead_letters}" in each]
        await node.ctl("close_connection", line.split()[0], "by an operator")

        await worker.wait_for_log("connected", times=2)

        assert "by an operator" in worker.said("connection_lost")[0]["reason"]


async def bindings(node: RabbitMQNode) -> str:
    return await node.ctl("list_bindings", "source_name", "destination_name")


class TestATopologyThatChanged:
    async def test_is_noticed_while_the_worker_consumes(
        self, queues: Queues, node: RabbitMQNode, worker: WorkerProcess, start_command: StartWorker
    ) -> None:
        """A missing dead-letter queue is reported before anything needs it."""
        await node.ctl("delete_queue", queues.dead_letters)

        line = await worker.wait_for_log("topology_wrong")
        await (await start_command("topology", "apply")).exit_code()
        await worker.wait_for_log("topology_right")

        assert queues.dead_letters in line["reason"]
        assert "topology apply" in line["hint"]
        assert len(worker.said("connected")) == 1

    async def test_gets_the_binding_of_its_dead_letters_again(
        self, queues: Queues, node: RabbitMQNode, worker: WorkerProcess
    ) -> None:
        """Dead letters have a route again within seconds after somebody has removed it."""
        async with queues.channel() as channel:
            queue = await channel.get_queue(queues.dead_letters)
            await queue.unbind(queues.dead_letters, "")

        async def is_bound() -> bool:
            return f"{queues.dead_letters}\t{queues.dead_letters}" in await bindings(node)

        await eventually(is_bound, every=0.5)
        await queues.publish([b"no JSON"])
        await worker.wait_for_log("dead_lettered")

    async def test_without_its_binding_stays_so_until_it_is_applied(
        self, queues: Queues, node: RabbitMQNode, worker: WorkerProcess, start_command: StartWorker
    ) -> None:
        """The worker and its next session leave alone what an operator unbound."""
        await queues.publish([planned("e-1")])
        await worker.wait_until_settled(1)
        async with queues.channel() as channel:
            queue = await channel.get_queue(queues.name)
            await queue.unbind(queues.exchange, "#")
        await node.ctl("close_all_connections", "test")
        await worker.wait_for_log("connected", times=2)
        # The next verification, which is logged if the result changes.
        await node.ctl("delete_queue", queues.dead_letters)
        await worker.wait_for_log("topology_wrong")
        assert f"{queues.exchange}\t{queues.name}" not in await bindings(node)

        await (await start_command("topology", "apply")).exit_code()

        assert f"{queues.exchange}\t{queues.name}" in await bindings(node)
        await queues.publish([planned("e-2")])
        await worker.wait_until_settled(2)

    async def test_while_the_worker_was_away_ends_the_next_start(
        self, queues: Queues, node: RabbitMQNode, worker: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """A file with messages and a broker without the queue: this is not a first start."""
        await queues.publish([planned("e-1")])
        await worker.wait_until_settled(1)
        worker.terminate()
        await worker.exit_code()
        await node.ctl("delete_queue", queues.name)

        following = await start_worker()

        assert await following.exit_code() == 1
        (line,) = following.said("failed")
        assert queues.name in line["reason"]
        assert "topology apply" in line["hint"]


class TestARestartedBroker:
    async def test_is_waited_for(
        self, queues: Queues, database: Path, node: RabbitMQNode, worker: WorkerProcess
    ) -> None:
        """After a stop or a kill, the worker consumes again, and nothing confirmed is lost."""
        messages = [planned("e-1"), started("e-1"), completed("e-1")]
        # The kill comes last: within seconds of a quorum queue's declaration, RabbitMQ 3.10 may
        # never elect a leader for the queue again after it (rabbitmq-server#10070).
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
    async def test_in_an_alarm_is_waited_for_while_the_rest_goes_on(
        self, queues: Queues, database: Path, node: RabbitMQNode, start_worker: StartWorker
    ) -> None:
        """It stays unacked until its copy is confirmed, and a full broker can be drained."""
        good = [make(f"e-{number}") for number in range(20) for make in (planned, started)]
        await queues.declare()
        await queues.publish([b"broken", *good])
        await node.ctl("set_vm_memory_high_watermark", "0.000001")
        try:
            worker = await start_worker()
            await worker.wait_for_log("blocked")
            await worker.wait_until_settled(len(good))

            assert rows(database) == expected_rows(good)
            assert worker.said("dead_lettered") == []
        finally:
            await node.ctl("set_vm_memory_high_watermark", "0.4")
        await worker.wait_for_log("unblocked")
        await worker.wait_until_settled(len(good) + 1)
        worker.terminate()
        await worker.exit_code()

        (letter,) = await queues.take_dead_letters()
        assert letter.body == b"broken"
        assert len(worker.said("blocked")) == len(worker.said("connected")) == 1
        assert len(worker.said("dead_lettered")) == 1
        assert await queues.left() == 0

    async def test_in_an_alarm_is_left_to_the_next_worker(
        self, queues: Queues, node: RabbitMQNode, start_worker: StartWorker
    ) -> None:
        """It is redelivered, and none of the messages around it is."""
        good = [planned(f"e-{number}") for number in range(20)]
        await queues.declare()
        await queues.publish([*good[:10], b"broken", *good[10:]])
        await node.ctl("set_vm_memory_high_watermark", "0.000001")
        try:
            worker = await start_worker()
            await worker.wait_for_log("blocked")
            await worker.wait_until_settled(len(good))
            await worker.kill()

            assert await queues.left() == 1
        finally:
            await node.ctl("set_vm_memory_high_watermark", "0.4")

    async def test_that_the_broker_does_not_read_does_not_keep_the_worker(
        self, queues: Queues, node: RabbitMQNode, start_worker: StartWorker
    ) -> None:
        """It fills the connection, which then cannot be closed normally; a drain aborts it."""
        await queues.declare()
        await queues.publish([LARGE])
        await node.ctl("set_vm_memory_high_watermark", "0.000001")
        try:
            worker = await start_worker()
            await worker.wait_for_log("blocked")
            worker.terminate()

            assert await worker.exit_code() == 0
            assert await queues.left() == 1
        finally:
            await node.ctl("set_vm_memory_high_watermark", "0.4")

    async def test_without_a_queue_for_it_is_waited_for(
        self, queues: Queues, node: RabbitMQNode, worker: WorkerProcess
    ) -> None:
        """A message is not acked while no queue would keep its dead letter."""
        await node.ctl("delete_queue", queues.dead_letters)
        await queues.publish([b"broken"])
        line = await worker.wait_for_log("blocked")
        assert worker.total("rejected") == 0

        await queues.declare()
        await worker.wait_for_log("unblocked")
        await worker.wait_until_settled(1)

        (letter,) = await queues.take_dead_letters()
        assert letter.body == b"broken"
        assert queues.dead_letters in line["reason"]

    async def test_that_is_still_blocked_at_the_end_stays_in_the_queue(
        self, queues: Queues, node: RabbitMQNode, worker: WorkerProcess
    ) -> None:
        """A drain neither waits for it nor loses it."""
        await node.ctl("delete_queue", queues.dead_letters)
        await queues.publish([b"broken"])
        await worker.wait_for_log("blocked")

        worker.terminate()

        assert await worker.exit_code() == 0
        assert worker.said("dead_lettered") == []
        assert await queues.left() == 1
