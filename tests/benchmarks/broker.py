"""The private broker of a run: its queues, publishing to them, and its CPU time."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aio_pika
from aio_pika.abc import AbstractChannel

from tests.benchmarks.spawning import Program, program
from tests.benchmarks.usage import cpu_seconds
from tests.rabbitmq import RabbitMQNode
from tests.waiting import LISTING_SECONDS, eventually
from worker.broker.topology import Topology

EXCHANGE = "benchmark.events"
DELIVERY_LIMIT = 20
# How the queue of a partition is named.
PARTITION = re.compile(r"\.\d{3}$")


@dataclass(frozen=True, slots=True)
class Published:
    """What a publisher reports."""

    began: float
    """On the monotonic clock, which all processes share."""
    ended: float
    """When the last confirm arrived."""


class Publishing:
    """A running publisher, in its own process."""

    def __init__(self, publisher: Program) -> None:
        """Watch a publisher that has been started."""
        self._publisher = publisher

    async def began(self) -> float:
        """Wait until it begins, and return the time."""
        return float((await self._publisher.told())["began"])

    async def ended(self) -> float:
        """Wait until every message is confirmed, and return the time."""
        ended = float((await self._publisher.told())["ended"])
        await self._publisher.finish()
        return ended


class Broker:
    """One node with one exchange, and a queue for each contender."""

    def __init__(self, node: RabbitMQNode, pid: int) -> None:
        """Use the node with this process id."""
        self.url = node.url
        self._node = node
        self._pid = pid

    def cpu_seconds(self) -> float:
        """Return the CPU time that the node has used so far."""
        return cpu_seconds(self._pid)

    async def declare(self, queues: Sequence[str], partitions: int | None = None) -> None:
        """Create queues like the worker's, each of which receives everything that is published."""
        async with self._channel() as channel:
            for queue in queues:
                await _topology(queue, partitions).apply(channel)

    async def unbind(self, queues: Sequence[str]) -> None:
        """Unbind these queues, so that no further message reaches them."""
        async with self._channel() as channel:
            for queue in queues:
                found = await channel.get_queue(queue, ensure=False)
                await found.unbind(EXCHANGE, "#")

    async def delete(self, queues: Sequence[str], partitions: int | None = None) -> None:
        """Delete queues and their dead letters."""
        async with self._channel() as channel:
            for queue in queues:
                topology = _topology(queue, partitions)
                for name in topology.queues:
                    await channel.queue_delete(name)
                for name in {*topology.exchanges, topology.claimed.exchange} - {EXCHANGE}:
                    await channel.exchange_delete(name)

    async def until_empty(self, queue: str) -> None:
        """Wait until everything that was in a queue or its partitions is acked."""

        async def is_empty() -> bool:
            # The number may be five seconds old, so it is asked for only after the measurement.
            table = await self._node.ctl("list_queues", "--no-table-headers", "name", "messages")
            waiting = [line.split("\t") for line in table.splitlines()]
            found = [number for name, number in waiting if PARTITION.sub("", name) == queue]
            return bool(found) and set(found) == {"0"}

        await eventually(is_empty, every=LISTING_SECONDS)

    async def until_spread(self, queue: str, partitions: int, workers: int) -> list[int]:
        """Wait until each worker consumes from some of the partitions, and nothing moves any more.

        Return how many each of them has, the fewest first.
        """
        before: dict[str, str] = {}

        async def spread() -> dict[str, str] | None:
            nonlocal before
            columns = ("queue_name", "channel_pid", "active")
            table = await self._node.ctl("list_consumers", "--no-table-headers", *columns)
            consumers = [line.split("\t") for line in table.splitlines()]
            after = {
                name: channel
                for name, channel, active in consumers
                if active == "true" and PARTITION.sub("", name) == queue
            }
            seen, before = before, after
            is_spread = len(after) == partitions and len({*after.values()}) == workers
            return after if is_spread and after == seen else None

        found = await eventually(spread, every=LISTING_SECONDS)
        return sorted(Counter(found.values()).values())

    @asynccontextmanager
    async def watching(self, queue: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
        """Yield a function that returns how many messages of a queue are not delivered."""
        async with self._channel() as channel:

            async def ready() -> int:
                found = await channel.declare_queue(queue, passive=True)
                return found.declaration_result.message_count or 0

            yield ready

    @asynccontextmanager
    async def publishing(self, file: Path, rate: float | None = None) -> AsyncIterator[Publishing]:
        """Publish a file of messages, as fast as they are confirmed or at an even rate."""
        evenly = () if rate is None else ("--rate", rate)
        async with program("publisher", self._node.port, EXCHANGE, file, *evenly) as publisher:
            yield Publishing(publisher)

    async def publish(self, file: Path) -> Published:
        """Publish a file of messages, and return when the broker has confirmed them all."""
        async with self.publishing(file) as publishing:
            return Published(await publishing.began(), await publishing.ended())

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[AbstractChannel]:
        async with await aio_pika.connect(self.url) as connection:
            yield await connection.channel()


def _topology(queue: str, partitions: int | None) -> Topology:
    return Topology(EXCHANGE, queue, DELIVERY_LIMIT, partitions)


async def broker_on(node: RabbitMQNode) -> Broker:
    """Use a running node."""
    return Broker(node, int((await node.ctl("eval", "os:getpid().")).strip().strip('"')))
