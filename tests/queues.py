"""The exchanges and queues of one test: unique names, filled and inspected from outside."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from tests.builders import Message, body
from tests.waiting import LOOK_SECONDS, PATIENCE_SECONDS, eventually, patiently
from worker.broker.topology import Topology

DELIVERY_LIMIT = 20
# Chat servers take the id of the chat.
ROUTING_KEY = "chat-1"
# This many publishes wait for their confirms together; more are no faster.
UNCONFIRMED = 200


@dataclass(frozen=True, slots=True)
class Depth:
    """The broker's counts for a queue, or for all partitions together."""

    ready: int
    consumers: int


class Queues:
    """One worker's exchange, queue and dead letters.

    Every inspection and every publish has its own connection. So nothing that a test does to the
    broker ends them, and an alarm that stops publishers does not stop inspections.
    """

    def __init__(self, url: str, partitions: int | None = None) -> None:
        """Choose names; nothing is declared yet."""
        self.url = url
        self.partitions = partitions
        self.exchange = f"test-{uuid4().hex[:12]}"
        self.name = f"{self.exchange}.projection"
        self.dead_letters = f"{self.name}.dead-letters"

    @property
    def settings(self) -> dict[str, object]:
        """The settings for a worker that uses them."""
        return {"amqp_url": self.url, "exchange": self.exchange, "queue": self.name}

    @asynccontextmanager
    async def channel(self, url: str | None = None) -> AsyncIterator[AbstractChannel]:
        """Hold a channel on its own connection."""
        async with await aio_pika.connect(url or self.url) as connection:
            yield await connection.channel(on_return_raises=True)

    def topology(self, delivery_limit: int = DELIVERY_LIMIT) -> Topology:
        """Return what the worker declares."""
        return Topology(self.exchange, self.name, delivery_limit, self.partitions)

    async def current(self) -> Topology:
        """Return the topology, as commands read it."""
        return self.topology()

    async def declare(self, delivery_limit: int = DELIVERY_LIMIT) -> None:
        """Declare what the worker declares, for tests that publish before there is a worker."""
        async with self.channel() as channel:
            await self.topology(delivery_limit).apply(channel)

    async def publish(
        self,
        messages: Iterable[Message | bytes],
        routing_key: str = ROUTING_KEY,
        **properties: Any,
    ) -> None:
        """Publish as chat servers do, in order; return once the broker has confirmed all."""
        async with self.channel() as channel:
            await self._publish(channel, messages, properties, routing_key)

    async def replace(self, messages: Iterable[Message | bytes]) -> None:
        """Wait until nobody consumes, and replace the remaining messages by these."""
        await self.left()
        async with self.channel() as channel:
            await (await channel.get_queue(self.name, ensure=False)).purge()
            await self._publish(channel, messages, {}, ROUTING_KEY)

    async def _publish(
        self,
        channel: AbstractChannel,
        messages: Iterable[Message | bytes],
        properties: dict[str, Any],
        routing_key: str,
    ) -> None:
        exchange = await channel.get_exchange(self.exchange)
        waiting = list(messages)
        for start in range(0, len(waiting), UNCONFIRMED):
            chunk = [_message(each, properties) for each in waiting[start : start + UNCONFIRMED]]
            await asyncio.gather(*(exchange.publish(each, routing_key) for each in chunk))

    async def depth(self) -> Depth:
        """Return how many messages wait in the queue, and how many consumers it has."""
        async with self.channel() as channel:
            return await self._depth(channel)

    async def _depth(self, channel: AbstractChannel) -> Depth:
        ready = consumers = 0
        for name in self.topology().work_queues:
            found = (await channel.declare_queue(name, passive=True)).declaration_result
            ready += found.message_count or 0
            consumers += found.consumer_count or 0
        return Depth(ready, consumers)

    async def left(self) -> int:
        """Wait until nobody consumes any more, and return how many messages were not acked.

        The broker takes back a consumer's unacked messages in the same step that removes it.
        """
        return (await self.until(lambda depth: depth.consumers == 0)).ready

    async def until(
        self, condition: Callable[[Depth], bool], within: float = PATIENCE_SECONDS
    ) -> Depth:
        """Inspect the queue until a condition holds, and return its depth then."""
        async with self.channel() as channel:

            async def look() -> Depth | None:
                depth = await self._depth(channel)
                return depth if condition(depth) else None

            return await eventually(look, within, LOOK_SECONDS)

    async def die_of_a_delivery(self) -> None:
        """Consume until a message is delivered, and end without an ack."""
        delivered = asyncio.Event()

        async def consume(_: AbstractIncomingMessage) -> None:
            delivered.set()

        async with self.channel() as channel:
            queue = await channel.get_queue(self.name)
            await queue.consume(consume)
            async with patiently():
                await delivered.wait()

    async def take_dead_letters(self) -> list[AbstractIncomingMessage]:
        """Take everything out of the dead-letter queue."""
        letters = []
        async with self.channel() as channel:
            queue = await channel.get_queue(self.dead_letters)
            while letter := await queue.get(no_ack=True, fail=False):
                letters.append(letter)
        return letters

    async def next_dead_letter(self) -> AbstractIncomingMessage:
        """Return the next dead letter, which the broker may not have published yet."""

        async def look() -> AbstractIncomingMessage | None:
            async with self.channel() as channel:
                queue = await channel.get_queue(self.dead_letters)
                return await queue.get(no_ack=True, fail=False)

        return await eventually(look)

    async def delete(self) -> None:
        """Delete all of it; the broker ignores what does not exist."""
        async with self.channel() as channel:
            topology = self.topology()
            for name in topology.queues:
                await channel.queue_delete(name)
            for name in (*topology.exchanges, topology.claimed.exchange):
                await channel.exchange_delete(name)


def _message(content: Message | bytes, properties: dict[str, Any]) -> aio_pika.Message:
    usual: dict[str, Any] = {"content_type": "application/json", "delivery_mode": 2}
    raw = content if isinstance(content, bytes) else body(content)
    return aio_pika.Message(raw, **(usual | properties))


@asynccontextmanager
async def queues_on(url: str, partitions: int | None = None) -> AsyncIterator[Queues]:
    """Hold queues that are deleted when the block ends."""
    queues = Queues(url, partitions)
    try:
        yield queues
    finally:
        await queues.delete()
