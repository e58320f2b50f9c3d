"""What an ack usually costs: aio-pika, with a consumer that only acks each message.

It is written as in aio-pika's documentation: a robust connection, a callback for each message, and
a separate ack for each. It reads no body, stores nothing and finds no duplicates. Every consumer of
this form, whatever it does with a message, is slower than this one. With a prefetch of 30, 100 or
1,000 it is no faster than with 500.
"""

import asyncio

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from tests.benchmarks.contenders.timing import Arguments, Clock, arguments, dismissed

PREFETCH = 500


async def main(told: Arguments) -> None:
    clock = Clock(told.messages)
    is_done = asyncio.Event()

    async def take(message: AbstractIncomingMessage) -> None:
        clock.begin()
        await message.ack()
        if clock.done():
            is_done.set()

    async with await aio_pika.connect_robust(told.url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue(told.queue, ensure=False)
        await queue.consume(take)
        await is_done.wait()
        await dismissed()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
