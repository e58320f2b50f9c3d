"""The transport's ceiling: aiormq, which is below aio-pika, with a consumer that does no work.

One ack with `multiple` for every 1,000 messages and a prefetch of 2,000, as the worker, so that
the broker always has something to send. It reads no body, keeps nothing and finds no duplicates.
What it takes is what a consumer pays that leaves AMQP to aiormq and does everything else for
nothing. The worker, which reads its deliveries out of the connection's bytes before aiormq does,
may be faster than this ceiling.
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
