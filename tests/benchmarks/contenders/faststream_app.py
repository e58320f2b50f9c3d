"""What one writes with a framework: FastStream, with a commit for each message.

A RabbitBroker's subscriber with a pydantic model of the message; one statement changes the row and
commits, in WAL mode with synchronous=FULL, as the worker's file; the ack is given by hand after
it. FastStream begins a task for each delivery; they queue up for the one connection to SQLite, in
order. It has the worker's effect on the row and nothing else of it: it keeps no log, finds no
duplicates, and does not see what is late. The prefetch is 100; more makes it no faster. Log lines
for each message are off, which FastStream would write otherwise.
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
        if clock.done():
            is_done.set()

    async with broker:
        await broker.start()
        await is_done.wait()
        await dismissed()
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
