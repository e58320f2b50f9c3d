"""What the broker does to its clients when it is short of a resource."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.builders import body, planned, started
from tests.database import locked, rows
from tests.oracle import expected_rows
from tests.processes import StartWorker
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.waiting import eventually
from worker.broker.publisher import IN_FLIGHT

# More than are in flight at once.
MANY = IN_FLIGHT + 100
MESSAGES = [make(f"e-{number}") for number in range(50) for make in (planned, started)]
# The setting that raises the alarm, and the one that ends it.
ALARMS = {
    "memory": (
        ("set_vm_memory_high_watermark", "0.000001"),
        ("set_vm_memory_high_watermark", "0.4"),
    ),
    "disk": (("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "1MB")),
}
# How long a delivery may stay unacked, in milliseconds, and how often the broker checks.
TIMEOUT = {"consumer_timeout": (3_000, 1_800_000), "channel_tick_interval": (500, 60_000)}


class TestAnAlarm:
    @pytest.mark.parametrize("resource", ALARMS)
    async def test_lets_what_was_delivered_and_what_waits_be_projected(
        self,
        queues: Queues,
        database: Path,
        node: RabbitMQNode,
        start_worker: StartWorker,
        resource: str,
    ) -> None:
        """Acks go on, which drains the broker; a dead letter waits until the alarm is over."""
        begin, end = ALARMS[resource]
        # The prefetch leaves some messages in the queue when the alarm begins.
        worker = await start_worker(prefetch=20, batch_size=20)
        await worker.wait_for_log("connected")
        try:
            with locked(database):
                await queues.publish([*MESSAGES[:10], b"broken", *MESSAGES[10:]])
                await node.ctl(*begin)
                assert resource in await node.ctl("eval", "rabbit_alarm:get_alarms().")
            await worker.wait_for_log("blocked")
            await worker.wait_until_settled(len(MESSAGES))
            assert rows(database) == expected_rows(MESSAGES)
            assert worker.said("dead_lettered") == []
        finally:
            await node.ctl(*end)
        await worker.wait_for_log("unblocked")
        await worker.wait_until_settled(len(MESSAGES) + 1)

        (letter,) = await queues.take_dead_letters()
        assert letter.body == b"broken"
        assert worker.said("connection_lost") == []

    async def test_lets_a_publish_be_interrupted(
        self, queues: Queues, node: RabbitMQNode, tmp_path: Path, start_command: StartWorker
    ) -> None:
        """One Ctrl-C is enough, although the outstanding confirms never come."""
        lines = b"\n".join(body(planned(f"e-{number}")) for number in range(MANY))
        (tmp_path / "m.ndjson").write_bytes(lines)
        await queues.declare()
        begin, end = ALARMS["memory"]
        await node.ctl(*begin)
        try:
            command = await start_command("publish", "m.ndjson")

            async def is_blocked() -> bool:
                return "blocked" in await node.ctl("list_connections", "state")

            await eventually(is_blocked)
            command.send(signal.SIGINT)

            assert await command.exit_code() != 0
        finally:
            await node.ctl(*end)


@pytest.fixture
async def impatient(node: RabbitMQNode) -> AsyncIterator[RabbitMQNode]:
    """Return a broker with a consumer timeout of seconds."""
    for name, (short, _) in TIMEOUT.items():
        await node.ctl("eval", f"application:set_env(rabbit, {name}, {short}).")
    yield node
    for name, (_, usual) in TIMEOUT.items():
        await node.ctl("eval", f"application:set_env(rabbit, {name}, {usual}).")


class TestTheConsumerTimeout:
    async def test_costs_a_held_batch_one_delivery(
        self, queues: Queues, database: Path, impatient: RabbitMQNode, start_worker: StartWorker
    ) -> None:
        """The worker consumes nothing until the database commits; then it projects all."""
        worker = await start_worker()
        await worker.wait_for_log("connected")

        with locked(database):
            await queues.publish(MESSAGES)
            lost = await worker.wait_for_log("connection_lost")
            # Long enough for a second timeout.
            assert await worker.outlives(5)
            assert len(worker.said("connected")) == 1
        await worker.wait_until_settled(len(MESSAGES))

        # RabbitMQ 4.3 cancels the consumer without a reason; earlier versions close the channel.
        assert "timeout" in lost["reason"].lower()
        assert lost["unsettled_seconds"] >= 3
        assert rows(database) == expected_rows(MESSAGES)
        assert await queues.take_dead_letters() == []
        assert len(worker.said("connected")) == 2


class TestTheDeadLetterQueue:
    async def test_that_is_full_is_waited_for(
        self, queues: Queues, database: Path, node: RabbitMQNode, start_worker: StartWorker
    ) -> None:
        """A dead letter that does not fit stays unacked; the other messages are projected."""
        policy = f"full-{queues.name}"
        full = '{"max-length": 1, "overflow": "reject-publish"}'
        await queues.declare()
        await node.ctl("set_policy", policy, f"^{queues.dead_letters}$", full)
        try:
            # The broker refuses publishes only after it has noticed that the queue is full.
            await queues.publish([b"broken 1", b"broken 2"])
            worker = await start_worker()
            await worker.wait_until_settled(2)
            await queues.publish([b"broken 3", *MESSAGES, b"broken 4"])
            await worker.wait_for_log("blocked")
            await eventually(lambda: rows(database) == expected_rows(MESSAGES))
            assert await queues.take_dead_letters()
        finally:
            await node.ctl("clear_policy", policy)
        await worker.wait_until_settled(len(MESSAGES) + 4)

        assert worker.total("rejected") == 4
        assert worker.said("connection_lost") == []

    async def test_without_its_exchange_is_waited_for(
        self,
        queues: Queues,
        database: Path,
        start_worker: StartWorker,
        start_command: StartWorker,
    ) -> None:
        """The broker ends the session; the bad message is kept until the exchange exists again."""
        worker = await start_worker()
        await worker.wait_for_log("connected")
        async with queues.channel() as channel:
            await channel.exchange_delete(queues.dead_letters)
        await queues.publish([*MESSAGES[:50], b"broken", *MESSAGES[50:]])
        refused = await worker.wait_for_log("connection_refused")

        assert await (await start_command("topology", "apply")).exit_code() == 0
        await worker.wait_until_settled(len(MESSAGES) + 1)

        (letter,) = await queues.take_dead_letters()
        assert letter.body == b"broken"
        assert letter.headers["x-reason"] == "not_json"
        assert queues.dead_letters in refused["reason"]
        assert rows(database) == expected_rows(MESSAGES)
