import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.builders import planned
from tests.processes import Line, StartWorker, WorkerProcess
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode

# In two parts, so that no file of ours contains what looks like a credential.
PASSWORD = "-".join(["S3CR3T", "canary"])


async def listed(node: RabbitMQNode, what: str, *columns: str) -> list[dict[str, Any]]:
    """Return what the broker's own tool lists."""
    found: list[dict[str, Any]] = json.loads(
        await node.ctl(f"list_{what}", "--formatter", "json", *columns)
    )
    return found


async def refusal(worker: WorkerProcess) -> Line:
    """Wait for a worker that does not start, and return the line that says why."""
    assert await worker.exit_code() == 1
    (line,) = worker.said("failed", level="error")
    assert worker.said("connected") == []
    return line


class TestTheTopology:
    async def test_has_queues_that_lose_nothing(
        self, queues: Queues, node: RabbitMQNode, start_worker: StartWorker
    ) -> None:
        """They are quorum queues: one active consumer, a delivery limit, a dead-letter exchange."""
        worker = await start_worker(delivery_limit=7)
        await worker.wait_for_log("connected")

        found = {
            queue["name"]: (queue["type"], {k: v for k, _, v in queue["arguments"]})
            for queue in await listed(node, "queues", "name", "type", "arguments")
        }

        assert found[queues.name] == ("quorum", {
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-delivery-limit": 7,
            "x-dead-letter-exchange": queues.dead_letters,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        })  # fmt: skip
        assert found[queues.dead_letters][0] == "quorum"

    async def test_has_durable_exchanges_bound_to_them(
        self, queues: Queues, node: RabbitMQNode, start_worker: StartWorker
    ) -> None:
        """There is a topic exchange for any routing key, and one for dead letters."""
        worker = await start_worker()
        await worker.wait_for_log("connected")

        exchanges = await listed(node, "exchanges", "name", "type", "durable")
        columns = ("source_name", "destination_name", "routing_key")
        bindings = [tuple(b[c] for c in columns) for b in await listed(node, "bindings", *columns)]

        ours = {each["name"]: each for each in exchanges}
        assert (ours[queues.exchange]["type"], ours[queues.exchange]["durable"]) == ("topic", True)
        assert ours[queues.dead_letters]["durable"] is True
        assert (queues.exchange, queues.name, "#") in bindings
        assert queues.dead_letters in [to for by, to, _ in bindings if by == queues.dead_letters]

    async def test_keeps_messages_that_kill_their_consumers(self, queues: Queues) -> None:
        """The broker itself dead-letters a message that was lost more often than the limit."""
        await queues.declare(delivery_limit=1)
        await queues.publish([b"deadly"])

        for _ in range(2):
            await queues.die_of_a_delivery()

        letter = await queues.next_dead_letter()
        assert letter.body == b"deadly"
        assert letter.headers["x-first-death-reason"] == "delivery_limit"


class TestAQueueThatDiffers:
    @pytest.mark.parametrize(
        "arguments",
        [{"x-queue-type": "classic"}, {"x-queue-type": "quorum"}],
        ids=["classic", "without arguments"],
    )
    async def test_ends_the_start(
        self, queues: Queues, start_worker: StartWorker, arguments: dict[str, str]
    ) -> None:
        """The error names the queue and how to replace it; the queue is left as it is."""
        async with queues.channel() as channel:
            existing: Any = arguments
            await channel.declare_queue(queues.name, durable=True, arguments=existing)

        line = await refusal(await start_worker())

        assert f"'{queues.name}'" in line["reason"]
        assert f"rabbitmqctl delete_queue {queues.name}" in line["hint"]
        assert (await queues.depth()).ready == 0

    async def test_ends_the_start_with_another_delivery_limit(
        self, queues: Queues, start_worker: StartWorker
    ) -> None:
        """A setting that the queue contradicts is not silently ignored."""
        await queues.declare(delivery_limit=5)

        line = await refusal(await start_worker(delivery_limit=6))

        assert "x-delivery-limit" in line["reason"]
        assert "WORKER_QUEUE" in line["hint"]


@pytest.fixture
async def user(node: RabbitMQNode) -> AsyncIterator[str]:
    """Return a user without permissions."""
    name = f"user-{uuid4().hex[:6]}"
    await node.ctl("add_user", name, PASSWORD)
    yield name
    await node.ctl("delete_user", name)


class TestARefusal:
    async def test_of_the_password_ends_the_start(
        self, broker_url: str, start_worker: StartWorker
    ) -> None:
        """The error names the wrong setting, without the password."""
        url = broker_url.replace("guest:guest", f"guest:{PASSWORD}")

        worker = await start_worker(amqp_url=url)

        assert "WORKER_AMQP_URL" in (await refusal(worker))["hint"]
        assert "S3CR3T" not in worker.output

    async def test_of_the_virtual_host_ends_the_start(
        self, broker_url: str, start_worker: StartWorker
    ) -> None:
        """A virtual host that does not exist is named, and not waited for."""
        line = await refusal(await start_worker(amqp_url=f"{broker_url}nowhere"))

        assert "nowhere" in line["reason"]
        assert "virtual host in WORKER_AMQP_URL" in line["hint"]

    async def test_of_a_user_without_access_ends_the_start(
        self, broker_url: str, user: str, start_worker: StartWorker
    ) -> None:
        """A user that may not access the virtual host is refused at once."""
        url = broker_url.replace("guest:guest", f"{user}:{PASSWORD}")

        worker = await start_worker(amqp_url=url)

        assert "permissions" in (await refusal(worker))["hint"]
        assert "S3CR3T" not in worker.output

    async def test_of_a_user_without_permissions_ends_the_start(
        self, broker_url: str, user: str, node: RabbitMQNode, start_worker: StartWorker
    ) -> None:
        """A user that may declare nothing is refused; the hint says which permissions it needs."""
        await node.ctl("set_permissions", user, "^$", "^$", "^$")
        url = broker_url.replace("guest:guest", f"{user}:{PASSWORD}")

        worker = await start_worker(amqp_url=url)

        assert "rabbitmqctl set_permissions" in (await refusal(worker))["hint"]
        assert "S3CR3T" not in worker.output


class TestARefusalWhileItRuns:
    async def test_of_a_changed_password_ends_with_the_new_one(
        self,
        queues: Queues,
        broker_url: str,
        user: str,
        node: RabbitMQNode,
        tmp_path: Path,
        start_worker: StartWorker,
    ) -> None:
        """It is read from its file for each connection: no restart, and one log line each way."""
        await node.ctl("set_permissions", user, ".*", ".*", ".*")
        secret = tmp_path / "worker_amqp_url"
        secret.write_text(broker_url.replace("guest:guest", f"{user}:{PASSWORD}"))
        worker = await start_worker(amqp_url=None)
        await worker.wait_for_log("connected")

        await node.ctl("change_password", user, f"{PASSWORD}-new")
        await node.ctl("close_all_connections", "by an operator")
        refused = await worker.wait_for_log("connection_refused")
        await worker.wait_for_log("connection_failed")
        secret.write_text(broker_url.replace("guest:guest", f"{user}:{PASSWORD}-new"))
        await worker.wait_for_log("connected", times=2)
        await queues.publish([planned("e-1")])
        await worker.wait_until_settled(1)

        assert "WORKER_AMQP_URL" in refused["hint"]
        assert len(worker.said("connection_refused")) == 1
        assert "S3CR3T" not in worker.output

    async def test_of_permissions_ends_when_they_are_granted_again(
        self,
        queues: Queues,
        broker_url: str,
        user: str,
        node: RabbitMQNode,
        start_worker: StartWorker,
    ) -> None:
        """The next session finds them missing; a later one finds them again."""
        await node.ctl("set_permissions", user, ".*", ".*", ".*")
        url = broker_url.replace("guest:guest", f"{user}:{PASSWORD}")
        worker = await start_worker(amqp_url=url)
        await worker.wait_for_log("connected")

        await node.ctl("set_permissions", user, "^$", "^$", "^$")
        await node.ctl("close_all_connections", "by an operator")
        await worker.wait_for_log("connection_failed")
        await node.ctl("set_permissions", user, ".*", ".*", ".*")
        await worker.wait_for_log("connected", times=2)
        await queues.publish([planned("e-1")])
        await worker.wait_until_settled(1)
