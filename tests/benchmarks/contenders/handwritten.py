"""A consumer written by hand: aio-pika, pydantic and aiosqlite, with one commit per message.

There is a callback for each message; pydantic reads the bytes in one pass; one statement changes
the row and commits, in WAL mode with synchronous=FULL, like the worker's file; then comes the ack.
aio-pika starts a task for each delivery; the tasks queue up for the one connection to SQLite, in
order. It changes the row as the worker does and does nothing else: it has no log, handles neither
duplicates nor late messages, and leaves a bad message unacked. With a prefetch of 30, 500 or 1,000
it is no faster than with 100; a loop that takes one message at a time is a third slower.
"""

import asyncio
from pathlib import Path

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from pydantic import TypeAdapter

from tests.benchmarks.contenders import rules
from tests.benchmarks.contenders.timing import Arguments, Clock, arguments, dismissed
from tests.benchmarks.database import create

PREFETCH = 100
WIRE: TypeAdapter[rules.AnyMessage] = TypeAdapter(rules.AnyMessage)


async def main(told: Arguments) -> None:
    clock = Clock(told.messages)
    is_done = asyncio.Event()
    await create(Path(told.database))
    database = await rules.open_database(told.database)

    async def take(delivery: AbstractIncomingMessage) -> None:
        clock.begin()
        await rules.apply(database, WIRE.validate_json(delivery.body))
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
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
