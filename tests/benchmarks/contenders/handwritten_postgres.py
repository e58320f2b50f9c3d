"""A consumer written by hand: aio-pika, pydantic and asyncpg, with one commit per message.

As `handwritten.py`, with the table on PostgreSQL and an inbox against duplicates
(`postgres_inbox.py`). It acks after the commit and leaves a bad message unacked.
"""

import asyncio

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from pydantic import TypeAdapter

from tests.benchmarks.contenders import rules
from tests.benchmarks.contenders.postgres_inbox import events_on
from tests.benchmarks.contenders.timing import Arguments, Clock, arguments, dismissed

PREFETCH = 100
WIRE: TypeAdapter[rules.AnyMessage] = TypeAdapter(rules.AnyMessage)


async def main(told: Arguments, connections: int = 1) -> None:
    clock = Clock(told.messages)
    is_done = asyncio.Event()
    async with events_on(told.database, connections) as events:

        async def take(delivery: AbstractIncomingMessage) -> None:
            clock.begin()
            await events.apply(WIRE.validate_json(delivery.body))
            await delivery.ack()
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
