from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.builders import planned, started
from tests.database import rows
from tests.oracle import expected_rows
from tests.processes import StartWorker
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode


@pytest.fixture
async def virtual_host(node: RabbitMQNode) -> AsyncIterator[str]:
    """Return a virtual host in which guest has all permissions."""
    name = f"host-{uuid4().hex[:6]}"
    await make(node, name)
    yield name
    await node.ctl("delete_vhost", name)


@pytest.fixture
async def queues(node: RabbitMQNode, virtual_host: str) -> Queues:
    # They are removed with their virtual host.
    return Queues(f"{node.url}{virtual_host}")


async def make(node: RabbitMQNode, name: str) -> None:
    await node.ctl("add_vhost", name)
    await node.ctl("set_permissions", "--vhost", name, "guest", ".*", ".*", ".*")


class TestAVirtualHost:
    async def test_that_is_gone_is_waited_for(
        self,
        queues: Queues,
        database: Path,
        node: RabbitMQNode,
        virtual_host: str,
        start_worker: StartWorker,
        start_command: StartWorker,
    ) -> None:
        """It comes back empty; the worker consumes once somebody has created its queues again."""
        worker = await start_worker()
        await worker.wait_for_log("connected")
        await queues.publish([first := planned("e-1")])
        await worker.wait_until_settled(1)

        await node.ctl("delete_vhost", virtual_host)
        refused = await worker.wait_for_log("connection_refused")
        await make(node, virtual_host)
        assert await (await start_command("topology", "apply")).exit_code() == 0
        await worker.wait_for_log("connected", times=2)
        await queues.publish([second := started("e-1")])
        await worker.wait_until_settled(2)

        assert virtual_host in refused["reason"]
        assert refused["hint"]
        assert rows(database) == expected_rows([first, second])
