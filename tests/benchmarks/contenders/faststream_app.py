"""A consumer written with a framework: FastStream, with one commit per message.

It is a RabbitBroker subscriber with a pydantic model of the message; one statement changes the row
and commits, in WAL mode with synchronous=FULL, like the worker's file. FastStream acks when the
handler has returned. Manual acks would need its message object, which it injects through a thread
pool: that costs a third more CPU and loses the order. FastStream starts a task for each delivery;
the tasks queue up for the one connection to SQLite, in order. It changes the row as the worker does
and does nothing else: it has no log, and handles neither duplicates nor late messages. Its log
lines are off. With a prefetch of 30, 500 or 1,000 it is no faster than with 100.
"""

import asyncio
from pathlib import Path

from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from tests.benchmarks.contenders import rules
from tests.benchmarks.contenders.timing import Arguments, Clock, arguments, dismissed
from tests.benchmarks.database import create

PREFETCH = 100


async def main(told: Arguments) -> None:
    clock = Clock(told.messages)
    is_done = asyncio.Event()
    await create(Path(told.database))
    database = await rules.open_database(told.database)
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
