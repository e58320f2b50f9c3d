"""A private cluster of three RabbitMQ nodes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tests.rabbitmq import RabbitMQNode
from tests.servers import NodeFailed
from tests.waiting import LISTING_SECONDS, eventually

PATIENCE_SECONDS = 90
# A node that was away for a minute restarts by itself, instead of forming a cluster of its own
# (rabbitmq.com/docs/partitions).
PARTITIONS = "cluster_partition_handling = pause_minority\n"


class Cluster:
    """The nodes, and operations on all of them."""

    def __init__(self, nodes: list[RabbitMQNode]) -> None:
        self.nodes = nodes

    @property
    def urls(self) -> str:
        """The addresses of all nodes, as a worker's setting."""
        return " ".join(node.url for node in self.nodes)

    async def leader(self, queue: str) -> RabbitMQNode:
        """Return the node that leads a quorum queue, once there is one."""

        async def look() -> RabbitMQNode | None:
            for asked in self.nodes:
                try:
                    text = await asked.ctl("list_queues", "--formatter", "json", "name", "leader")
                except NodeFailed:
                    continue  # This node is down; another one knows.
                leaders = {each["name"]: each["leader"] for each in json.loads(text)}
                return next((n for n in self.nodes if n.name == leaders.get(queue)), None)
            return None

        return await eventually(look, PATIENCE_SECONDS, LISTING_SECONDS)

    async def whole(self) -> None:
        """Start the nodes that were stopped, and wait until all nodes see each other."""
        await asyncio.gather(*(node.start() for node in self.nodes))

        async def is_whole() -> bool:
            status = json.loads(await self.nodes[0].ctl("cluster_status", "--formatter", "json"))
            return len(status["running_nodes"]) == len(self.nodes)

        await eventually(is_whole, PATIENCE_SECONDS, LISTING_SECONDS)


@asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    """Hold three nodes in a cluster; leaving the block removes every trace."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(RabbitMQNode(PARTITIONS))
        others = [RabbitMQNode(PARTITIONS, friend=first) for _ in range(2)]
        await asyncio.gather(*(stack.enter_async_context(node) for node in others))
        running = Cluster([first, *others])
        await running.whole()
        yield running
