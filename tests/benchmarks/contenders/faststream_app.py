"""What one writes with a framework: FastStream, with a commit for each message.

A RabbitBroker's subscriber with a pydantic model of the message; one statement changes the row and
commits, in WAL mode with synchronous=FULL, as the worker's file; FastStream acks when the handler
has returned, and at no other time. To ack by hand would need its message object, which it injects
by way of a pool of threads: a third more CPU, and the order is lost. It begins a task for each
delivery; they queue up for the one connection to SQLite, in order. It has the worker's effect on
the row and nothing else of it: no log, no duplicates, nothing late. Its log lines are off. With a
prefetch of 30, 500 or 1,000 it is no faster than with 100.
"""

import asyncio

from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from tests.benchmarks.contenders import rules
from tests.benchmarks.contenders.timing import Arguments, Clock, arguments, dismissed
from tests.benchmarks.database import create

PREFETCH = 100


async def main(told: Arguments) -> None:
    clock = Clock(told.messages)
    is_done = asyncio.Event()
    await create(told.database)
    database = await rules.open_database(str(told.database))
    broker = RabbitBroker(told.url, logger=None)

    @broker.subscriber(
        RabbitQueue(told.queue, declare=False),
        channel=Channel(prefetch_count=PREFETCH),
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def take(message: rules.AnyMessage) -> None:
        clock.begin()
        await rules.apply(database, message)
        # The ack follows within microseconds.
        if clock.done():
            is_done.set()

    async with broker:
        await broker.start()
        await is_done.wait()
        await dismissed()
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
