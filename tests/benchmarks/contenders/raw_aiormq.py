"""The transport's limit: aiormq, on which aio-pika is based, with a consumer that does no work.

Like the worker, it sends one ack with `multiple` for every 1,000 messages and has a prefetch of
2,000, so that the broker always has something to send. It reads no body, stores nothing and finds
no duplicates. Its cost is that of a consumer that leaves AMQP to aiormq and does everything else
for free. The worker may be faster than this limit, because it reads its deliveries from the
connection's bytes before aiormq does.
"""

import asyncio

import aiormq
from aiormq.abc import DeliveredMessage

from tests.benchmarks.contenders.timing import Arguments, Clock, arguments, dismissed

PREFETCH = 2_000
ACK_EVERY = 1_000


async def main(told: Arguments) -> None:
    clock = Clock(told.messages)
    is_done = asyncio.Event()
    unacked = 0

    async def take(message: DeliveredMessage) -> None:
        nonlocal unacked
        clock.begin()
        unacked += 1
        if unacked == min(ACK_EVERY, clock.left):
            tag, taken, unacked = message.delivery_tag or 0, unacked, 0
            await channel.basic_ack(tag, multiple=True)
            if clock.done(taken):
                is_done.set()

    connection = await aiormq.connect(told.url)
    channel = await connection.channel()
    await channel.basic_qos(prefetch_count=PREFETCH)
    await channel.basic_consume(told.queue, take)
    await is_done.wait()
    await dismissed()
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
