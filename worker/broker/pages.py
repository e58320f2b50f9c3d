"""Reads a queue page by page, and leaves it in its original order.

When a channel closes, a quorum queue takes back its unacked messages: consumer by consumer, each
consumer's messages in order, behind those that came back from earlier channels. So every message is
taken, each page by its own consumer, and the channels are closed in the order in which they were
opened. (After a `basic.get` of each message, or a `basic.nack` of many, RabbitMQ 3.10 returns them
in no particular order.)
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.abc import AbstractChannel as UnderlayChannel
from aiormq.abc import DeliveredMessage

from worker.tasks import in_time

# A page is what is in memory at a time. The first has this many messages; each later one has as
# many as fit into `PAGE_BYTES`, judging by the sizes on the page before.
FIRST_PAGE = 100
PAGE = 1_000
PAGE_BYTES = 16 * 1024 * 1024
# The broker goes through a channel's consumers in the order of their tags only if there are at most
# 32, because larger Erlang maps are unordered.
PAGES_OF_A_CHANNEL = 32
# Deliveries take milliseconds; a message that does not arrive is held by another program.
DELIVERY_SECONDS = 5
# Answers take milliseconds, too. The heartbeat detects a dead broker only a few seconds later.
ANSWER_SECONDS = 30

T = TypeVar("T")


class Pages:
    """Reads a given number of messages, each once.

    Every method raises what the library raises, and `TimeoutError` if the broker does not answer.
    """

    def __init__(self, connection: AbstractConnection, queue: str, count: int) -> None:
        """Prepare to read the first `count` messages of the queue."""
        self._connection = connection
        self._queue = queue
        self._left = count
        self._size = FIRST_PAGE
        self._number = 0
        self._channels: list[AbstractChannel] = []
        self._changed: set[UnderlayChannel] = set()
        self._inbox: asyncio.Queue[DeliveredMessage | None] = asyncio.Queue()
        self.missing = 0
        """How many messages did not arrive."""

    async def next(self) -> list[DeliveredMessage]:
        """Return the next page; empty after the last one."""
        wanted = min(self._size, self._left)
        if not wanted:
            return []
        channel = await self._channel()
        await _answer(channel.basic_qos(prefetch_count=wanted))
        tag = f"page-{self._number:06}"
        self._number += 1
        await _answer(channel.basic_consume(self._queue, self._on_delivery, consumer_tag=tag))
        page = await self._receive(wanted)
        # This comes before any ack, because an ack would let the consumer have more.
        await _answer(channel.basic_cancel(tag))
        self._left -= len(page)
        if len(page) < wanted:
            self.missing, self._left = self._left, 0
        size = 1 + sum(len(message.body) for message in page) // max(len(page), 1)
        self._size = max(1, min(PAGE, PAGE_BYTES // size))
        return page

    async def ack(self, message: DeliveredMessage) -> None:
        """Remove a message of any page from the queue."""
        self._changed.add(message.channel)
        await message.channel.basic_ack(message.delivery_tag or 0)

    async def finish(self) -> None:
        """Return the remaining messages to the queue in their original order."""
        # Messages never taken would overtake those that come back, so take all of them.
        while await self.next():
            pass
        await self.flush()
        for channel in self._channels:
            await _answer(channel.close())

    async def flush(self) -> None:
        """Return when the queue has all acks, because a closing channel drops those it still holds.

        A channel passes 32 commands at a time to a quorum queue. One get waits until the queue has
        done those that it has, and a second one until the channel has passed on the others. Any
        message that they return is new, and goes back with the rest.
        """
        for channel in self._changed:
            for _ in range(2):
                await _answer(channel.basic_get(self._queue))

    async def _channel(self) -> UnderlayChannel:
        if self._number % PAGES_OF_A_CHANNEL == 0:
            channel = await _answer(self._connection.channel(publisher_confirms=False))
            self._channels.append(channel)
            underlay = await channel.get_underlay_channel()
            underlay.closing.add_done_callback(lambda _: self._inbox.put_nowait(None))
        return await self._channels[-1].get_underlay_channel()

    async def _on_delivery(self, message: DeliveredMessage) -> None:
        self._inbox.put_nowait(message)

    async def _receive(self, wanted: int) -> list[DeliveredMessage]:
        page: list[DeliveredMessage] = []
        while len(page) < wanted:
            try:
                async with asyncio.timeout(DELIVERY_SECONDS):
                    message = await self._inbox.get()
            except TimeoutError:
                break
            if message is None:
                break
            page.append(message)
        return page


async def _answer(asked: Awaitable[T]) -> T:
    return await in_time(asked, ANSWER_SECONDS)
