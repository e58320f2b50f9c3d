"""A queue that is looked through page by page, and has its order again when it is let go.

When a channel closes, a quorum queue takes back what was not acked, consumer by consumer, each
consumer's in its order, and puts it behind what came back from an earlier look. So everything is
taken, each page by a consumer of its own. (After a `basic.get` for each message, or a `basic.nack`
of many, RabbitMQ 3.10 puts them back in no order at all.)
"""

import asyncio

from aiormq.abc import AbstractChannel, DeliveredMessage

# How many messages are in memory at a time, on both sides: so many at first, and then as many as
# fit into the bytes by the sizes seen so far. The broker goes through up to 32 consumers in the
# order of their tags (beyond, an Erlang map has none), so few large pages are better.
FIRST_PAGE = 100
PAGE = 1_000
PAGE_BYTES = 16 * 1024 * 1024
# Deliveries take milliseconds; what does not come is held by another command.
DELIVERY_SECONDS = 5


class Pages:
    """Reads as many messages as it is told, each once. Raises what the library raises."""

    def __init__(self, channel: AbstractChannel, queue: str, count: int) -> None:
        """Use a channel that nobody else uses."""
        self._channel = channel
        self._queue = queue
        self._left = count
        self._size = FIRST_PAGE
        self._pages = 0
        self._inbox: asyncio.Queue[DeliveredMessage | None] = asyncio.Queue()
        channel.closing.add_done_callback(lambda _: self._inbox.put_nowait(None))

    async def next(self) -> list[DeliveredMessage]:
        """Give the next page; empty when all have been given."""
        wanted = min(self._size, self._left)
        if not wanted:
            return []
        await self._channel.basic_qos(prefetch_count=wanted)
        self._pages += 1
        tag = f"page-{self._pages:06}"
        await self._channel.basic_consume(self._queue, self._on_delivery, consumer_tag=tag)
        page = await self._receive(wanted)
        # Before anything is acked, which would let the consumer have more.
        await self._channel.basic_cancel(tag)
        self._left = self._left - wanted if len(page) == wanted else 0
        size = 1 + sum(len(message.body) for message in page) // max(len(page), 1)
        self._size = max(1, min(PAGE, PAGE_BYTES // size))
        return page

    async def ack(self, tag: int) -> None:
        """Remove a message of the last page from the queue."""
        await self._channel.basic_ack(tag)

    async def finish(self) -> None:
        """Take the pages that are left: those in them would overtake the ones that come back."""
        while await self.next():
            pass
        await self.flush()

    async def flush(self) -> None:
        """Return when the queue has all acks: a channel that closes drops those it still holds.

        A channel hands a quorum queue 32 commands at a time. A get waits until those that the
        queue has are done, and a second one until the channel has handed over the others. What
        they may give is new, and goes back with the rest.
        """
        for _ in range(2):
            await self._channel.basic_get(self._queue, timeout=DELIVERY_SECONDS)

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
