"""One life of connection, channel and consumer: they open together and end together.

A plain connection and not the library's robust one: whatever breaks, the session ends, its
deliveries are forgotten, and the service opens a new one.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from worker.broker.consumer import Consumer
from worker.broker.publisher import LOST, closing, connection, publisher
from worker.broker.topology import Topology
from worker.errors import SessionLost


@asynccontextmanager
async def session(
    url: str,
    topology: Topology,
    *,
    prefetch: int,
    batch_size: int,
    on_blocked: Callable[[str | None], None],
) -> AsyncIterator[Consumer]:
    """Open a session and give its consumer; close it with the block.

    `prefetch` is the number of unacked deliveries that the broker grants, `batch_size` the most
    that are given at once. Raises `SessionLost` if the broker cannot be reached, `BrokerRefused` if
    it says no.
    """
    async with AsyncExitStack() as stack:
        try:
            consuming = await stack.enter_async_context(
                connection(url, f"projection-worker {topology.queue}")
            )
            async with consuming.channel() as declaring:
                await topology.declare(declaring)
            dead_letter_publisher = await stack.enter_async_context(
                publisher(url, topology.dead_letters, f"projection-worker {topology.dead_letters}")
            )
            channel = await consuming.channel(publisher_confirms=False)
            # The channel before the connection, and no basic.cancel: a cancelled consumer would
            # let the next one start while our unacked deliveries are still out
            # (rabbitmq.com/docs/queues, "Message Ordering").
            stack.push_async_callback(closing, channel)
            underlay = await channel.get_underlay_channel()
            consumer = Consumer(
                underlay,
                dead_letter_publisher,
                topology.queue,
                batch_size=batch_size,
                on_blocked=on_blocked,
            )
            await _consume(underlay, consumer, topology.queue, prefetch)
        except LOST as error:
            raise SessionLost(
                f"The session with the broker ended ({type(error).__name__}: {error}).",
                "a new one is opened by itself; see RabbitMQ's log if it is not.",
            ) from error
        yield consumer


async def _consume(
    underlay: AbstractChannel, consumer: Consumer, queue: str, prefetch: int
) -> None:
    # The underlay channel hands over plain deliveries; aio-pika would build a message object with
    # methods for each, of which a batch that is acked at once needs none.
    def on_closed(closed: asyncio.Future[None]) -> None:
        error = None if closed.cancelled() else closed.exception()
        consumer.lose(f"{type(error).__name__}: {error}" if error else "the channel was closed")

    def on_cancelled(frame: Basic.Cancel) -> None:
        # Only sets a flag: the library's reader waits for this to return.
        consumer.lose(f"the broker cancelled the consumer of queue {queue!r}")

    underlay.closing.add_done_callback(on_closed)
    underlay.on_consumer_cancel_callbacks.add(on_cancelled)
    await underlay.basic_qos(prefetch_count=prefetch)
    await underlay.basic_consume(queue, consumer.on_delivery)
