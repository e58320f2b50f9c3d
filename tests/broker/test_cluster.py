"""A cluster of three nodes that loses one or two of them."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aio_pika.exceptions import AMQPError, DeliveryError

from tests.builders import planned, started
from tests.cluster import PATIENCE_SECONDS, Cluster, cluster
from tests.database import count_log, rows
from tests.health import asking, until_not_ready, until_ready
from tests.oracle import expected_rows
from tests.processes import StartWorker, WorkerProcess
from tests.queues import Queues, queues_on
from tests.rabbitmq import RabbitMQNode, server_program
from tests.waiting import eventually

BEFORE = [make(f"e-{number}") for number in range(100) for make in (planned, started)]
AFTER = [make(f"f-{number}") for number in range(100) for make in (planned, started)]


# It belongs to no event loop, like `running_node`.
@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_cluster() -> AsyncIterator[Cluster]:
    if server_program() is None and "CI" not in os.environ:
        pytest.skip("RabbitMQ is not installed; `make setup` installs it")
    async with cluster() as running:
        yield running


@pytest.fixture
async def three(running_cluster: Cluster) -> AsyncIterator[Cluster]:
    """Return three running nodes; a test that stops one may leave it stopped."""
    yield running_cluster
    await running_cluster.whole()


@pytest.fixture
async def queues(three: Cluster) -> AsyncIterator[Queues]:
    async with queues_on(three.nodes[0].url) as queues:
        await queues.declare()
        yield queues
        await three.whole()


async def until_logged(database: Path, count: int) -> None:
    await eventually(lambda: count_log(database) >= count, PATIENCE_SECONDS)


async def consuming(
    start_worker: StartWorker, queues: Queues, database: Path, urls: str
) -> WorkerProcess:
    """Return a worker that has projected what was in the queue."""
    await queues.publish(BEFORE)
    worker = await start_worker(amqp_url=urls)
    await until_logged(database, len(BEFORE))
    return worker


async def publish_through(node: RabbitMQNode, queues: Queues) -> None:
    """Publish until all is confirmed, as publishers do; a queue without a leader refuses."""
    queues.url = node.url

    async def is_confirmed() -> bool:
        try:
            await queues.publish(AFTER)
        except (DeliveryError, AMQPError):
            return False
        return True

    await eventually(is_confirmed, PATIENCE_SECONDS)


class TestTheLeaderOfTheQueue:
    async def test_killed_loses_nothing(
        self, queues: Queues, database: Path, three: Cluster, start_worker: StartWorker
    ) -> None:
        """Another node becomes leader; a worker that is connected to a third one goes on."""
        leader = await three.leader(queues.name)
        other, third = [node for node in three.nodes if node is not leader]
        await consuming(start_worker, queues, database, other.url)

        await leader.kill()
        await publish_through(third, queues)
        await until_logged(database, len(BEFORE) + len(AFTER))

        assert rows(database) == expected_rows([*BEFORE, *AFTER])

    async def test_killed_under_the_worker_is_left_for_another_node(
        self, queues: Queues, database: Path, three: Cluster, start_worker: StartWorker
    ) -> None:
        """The worker knows all nodes, and connects to one that answers."""
        leader = await three.leader(queues.name)
        other = next(node for node in three.nodes if node is not leader)
        worker = await consuming(start_worker, queues, database, three.urls)

        await leader.kill()
        await publish_through(other, queues)
        await until_logged(database, len(BEFORE) + len(AFTER))

        assert rows(database) == expected_rows([*BEFORE, *AFTER])
        assert worker.said("holding") == []


class TestAFrozenNode:
    async def test_that_leads_and_serves_the_worker_is_found_and_nothing_comes_twice(
        self, queues: Queues, database: Path, three: Cluster, start_worker: StartWorker
    ) -> None:
        """Its connections stay open but silent; when it thaws, it finds a new leader."""
        leader = await three.leader(queues.name)
        other = next(node for node in three.nodes if node is not leader)
        worker = await consuming(start_worker, queues, database, leader.url)

        leader.freeze()
        try:
            publishing = asyncio.create_task(publish_through(other, queues))
            await eventually(lambda: worker.said("connection_lost"), PATIENCE_SECONDS)
        finally:
            leader.thaw()
        await publishing
        await until_logged(database, len(BEFORE) + len(AFTER))

        assert rows(database) == expected_rows([*BEFORE, *AFTER])
        assert await queues.take_dead_letters() == []
        assert len(worker.said("connection_lost")) == 1


class TestTheMajority:
    async def test_lost_is_waited_for(
        self, queues: Queues, database: Path, three: Cluster, start_worker: StartWorker
    ) -> None:
        """Without it nothing is confirmed and the worker is not ready; with it, all goes on."""
        first, second, third = three.nodes
        worker = await consuming(start_worker, queues, database, first.url)
        ask = asking(worker)
        await until_ready(ask)

        await asyncio.gather(second.stop(), third.stop())
        publishing = asyncio.create_task(publish_through(first, queues))
        await until_not_ready(ask)
        assert not publishing.done()
        await three.whole()
        await publishing
        await until_logged(database, len(BEFORE) + len(AFTER))
        await until_ready(ask)

        assert rows(database) == expected_rows([*BEFORE, *AFTER])
        assert await queues.take_dead_letters() == []
