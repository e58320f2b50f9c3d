"""A consumer written with a framework: FastStream and asyncpg, with one commit per message.

As `faststream_app.py`, with the table on PostgreSQL and an inbox against duplicates
(`postgres_inbox.py`). FastStream acks when the handler has returned, after the commit.
"""

import asyncio

from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from tests.benchmarks.contenders import rules
from tests.benchmarks.contenders.postgres_inbox import events_on
from tests.benchmarks.contenders.timing import Arguments, Clock, arguments, dismissed

PREFETCH = 100


async def main(told: Arguments) -> None:
    clock = Clock(told.messages)
    is_done = asyncio.Event()
    broker = RabbitBroker(told.url, logger=None)
    async with events_on(told.database) as events:

        @broker.subscriber(
            RabbitQueue(told.queue, declare=False),
            channel=Channel(prefetch_count=PREFETCH),
            ack_policy=AckPolicy.NACK_ON_ERROR,
        )
        async def take(message: rules.AnyMessage) -> None:
            clock.begin()
            await events.apply(message)
            # The ack follows within microseconds.
            if clock.done():
                is_done.set()

        async with broker:
            await broker.start()
            await is_done.wait()
            await dismissed()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
