"""How fast bad messages are dead-lettered, compared with publishing the same bodies."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict

import aio_pika

from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.broker import EXCHANGE
from tests.benchmarks.running import Run, drain
from tests.benchmarks.traffic import Sent, Traffic

CLIENT, DEAD_LETTERING = "client", "dead_lettering"
QUEUE = "benchmark.bad"
# The client has as many unconfirmed publishes as the worker.
UNCONFIRMED = 1_000


async def dead_lettering(bench: Bench, *, rounds: int, messages: int) -> Result:
    """Publish messages of an unknown kind, and let the worker dead-letter them."""
    sent = Traffic().take(messages)
    runs: dict[str, list[Run]] = {CLIENT: [], DEAD_LETTERING: []}
    for number in range(1, rounds + 1):
        await bench.broker.declare([QUEUE])
        database = bench.folder / f"bad-{number}.db"
        runs[CLIENT].append(await _publish(bench, sent))
        runs[DEAD_LETTERING].append(await drain(bench.broker, QUEUE, database, messages))
        database.unlink()
        await bench.broker.delete([QUEUE])
        published, dead_lettered = (done[-1].rate for done in runs.values())
        bench.say(
            f"  round {number}: published {published:,.0f}, dead-lettered {dead_lettered:,.0f} "
            "messages/s"
        )
    return {
        "messages": messages,
        "rounds": rounds,
        "runs": {name: [asdict(each) for each in done] for name, done in runs.items()},
    }


async def _publish(bench: Bench, sent: Sequence[Sent]) -> Run:
    """Publish with aio-pika, which the worker also uses."""
    window = asyncio.Semaphore(UNCONFIRMED)
    async with await aio_pika.connect(bench.broker.url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(EXCHANGE, ensure=False)

        async def publish(message: Sent) -> None:
            body = message.body.replace(f'"kind":"{message.kind}"', '"kind":"event_unknown"', 1)
            async with window:
                await exchange.publish(
                    aio_pika.Message(
                        body.encode(), content_type="application/json", delivery_mode=2
                    ),
                    message.chat_id,
                )

        began, cpu = time.monotonic(), time.process_time()
        of_broker = bench.broker.cpu_seconds()
        await asyncio.gather(*map(publish, sent))
        return Run(
            messages=len(sent),
            seconds=time.monotonic() - began,
            cpu_seconds=time.process_time() - cpu,
            broker_cpu_seconds=bench.broker.cpu_seconds() - of_broker,
        )
