"""The two windows of a worker on one queue: a narrow one of one delivery, and a wide one.

They are two consumers. A queue with a single active consumer serves the narrow one until it is
cancelled.
"""

import asyncio
from itertools import count

from aiormq.abc import AbstractChannel, DeliveredMessage


class Consuming:
    """Starts and ends consumers on a channel, one request after the other."""

    def __init__(self, channel: AbstractChannel, partitions: dict[bytes, int]) -> None:
        """Note in `partitions` the partition of each consumer tag from its start to its end."""
        self._channel = channel
        self._partitions = partitions
        self._numbers = count(1)
        # The broker applies a prefetch to consumers that start after it is set
        # (rabbitmq.com/docs/consumer-prefetch), so nothing may come between the two requests.
        self._lock = asyncio.Lock()
        self._set_prefetch = 0

    async def start(self, queue: str, partition: int, prefetch: int, priority: int) -> str:
        """Return the tag of a new consumer."""
        tag = f"{partition}.{next(self._numbers)}"
        self._partitions[tag.encode()] = partition
        async with self._lock:
            if prefetch != self._set_prefetch:
                await self._set(prefetch)
            await self._channel.basic_consume(
                queue, _never_called, arguments={"x-priority": priority}, consumer_tag=tag
            )
        return tag

    async def end(self, tag: str) -> None:
        """Cancel a consumer, and forget its tag; its unacked deliveries stay unacked."""
        await self._channel.basic_cancel(tag)
        # The broker delivers nothing after its answer.
        self._partitions.pop(tag.encode(), None)

    async def has_consumer(self, queue: str) -> bool:
        """Return whether the queue has an active consumer, or a cancelled one with deliveries."""
        declared = await self._channel.queue_declare(queue, passive=True)
        return bool(declared.consumer_count)

    async def is_empty(self, queue: str) -> bool:
        """Return whether no message waits in the queue; those for this channel have arrived."""
        declared = await self._channel.queue_declare(queue, passive=True)
        await self.catch_up()
        return not declared.message_count

    async def catch_up(self) -> None:
        """Return when everything has arrived that the broker has sent on the channel by now."""
        async with self._lock:
            await self._set(1)

    async def _set(self, prefetch: int) -> None:
        await self._channel.basic_qos(prefetch_count=prefetch)
        self._set_prefetch = prefetch


class Windows:
    """The narrow and the wide window on one queue."""

    def __init__(self, consuming: Consuming, queue: str, partition: int, rank: int) -> None:
        """Prepare to consume from this queue; sends nothing yet.

        Since RabbitMQ 4.0 the worker with the highest rank consumes.
        """
        self._consuming = consuming
        self._queue = queue
        self._partition = partition
        self._rank = rank
        self._narrow_tag: str | None = None
        self._wide_tag = ""

    @property
    def is_narrow(self) -> bool:
        """Whether only one message is delivered at a time."""
        return self._narrow_tag is not None

    async def open(self, prefetch: int) -> None:
        """Let the broker deliver one message at a time; `prefetch` is for the wide window.

        Returns when the first message has arrived, if there is one for this worker.
        """
        # Both consumers start now, so that no other worker's consumer gets between them. If they
        # have to wait, RabbitMQ 3 activates the first one, and RabbitMQ 4 the one with the higher
        # priority or, if equal, the larger prefetch.
        await self.narrow()
        self._wide_tag = await self._start_wide(prefetch)
        await self._consuming.catch_up()

    async def narrow(self) -> None:
        """Let the broker deliver one message at a time, once all others have been settled."""
        self._narrow_tag = await self._consuming.start(
            self._queue, self._partition, 1, 2 * self._rank + 1
        )

    async def widen(self) -> None:
        """Leave the queue to the wide window, unless that has been done already.

        Call it while the narrow window's only delivery is still unacked: then no further delivery
        can be on its way to the narrow window, to come back and count as lost.
        """
        if self._narrow_tag is not None:
            tag, self._narrow_tag = self._narrow_tag, None
            await self._consuming.end(tag)

    async def resize(self, prefetch: int) -> None:
        """Replace the wide window by one of this size; unacked deliveries stay unacked."""
        replaced, self._wide_tag = self._wide_tag, await self._start_wide(prefetch)
        await self._consuming.end(replaced)

    async def close(self) -> None:
        """Take no more deliveries; unacked ones stay unacked."""
        # The wide one first: the queue must not serve it in between.
        await self._consuming.end(self._wide_tag)
        await self.widen()

    async def _start_wide(self, prefetch: int) -> str:
        return await self._consuming.start(self._queue, self._partition, prefetch, 2 * self._rank)


async def _never_called(_: DeliveredMessage) -> None:
    """Do nothing: the library requires a callback, but the intake takes deliveries before it."""
