"""The lower limit of latency: aiormq, with a consumer that records when each message arrives.

It reads no body and stores nothing; it sends one ack with `multiple` for all messages that arrived
together. Publisher, broker and cores are the same as for the worker, and their share of the time is
the same for every consumer.
"""

import asyncio
import json
import time
from array import array
from pathlib import Path

import aiormq
from aiormq.abc import DeliveredMessage

from tests.benchmarks.contenders.timing import Arguments, arguments

# The same as the worker's.
PREFETCH = 2_000


async def main(told: Arguments, seen: "array[float]") -> None:
    has_come = asyncio.Event()

    async def take(_: DeliveredMessage) -> None:
        seen.append(time.monotonic())
        has_come.set()

    connection = await aiormq.connect(told.url)
    channel = await connection.channel()
    await channel.basic_qos(prefetch_count=PREFETCH)
    await channel.basic_consume(told.queue, take)
    print(json.dumps({"event": "consumes"}), flush=True)
    acked = 0
    while acked < told.messages:
        await has_come.wait()
        has_come.clear()
        # The tags of a channel count from 1.
        acked = len(seen)
        await channel.basic_ack(acked, multiple=True)
    await connection.close()


if __name__ == "__main__":
    told, seen = arguments(), array("d")
    asyncio.run(main(told, seen))
    with Path(told.database).open("wb") as file:
        seen.tofile(file)
