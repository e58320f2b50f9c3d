"""What the worker needs: memory under the largest load, and CPU while idle."""

import asyncio

from tests.benchmarks import traffic
from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.running import drain, running_worker
from tests.benchmarks.traffic import Traffic
from tests.benchmarks.usage import cpu_seconds

QUEUE = "benchmark.footprint"
# By then the start and the first look at the topology are over.
SETTLING_SECONDS = 5
# Written and published in pieces, so that a million messages need not fit into memory.
PIECE = 100_000


async def memory(bench: Bench, *, messages: int) -> Result:
    """Return the worker's peak memory while it drains a queue of this many messages."""
    log, file = Traffic(), bench.folder / "messages"
    await bench.broker.declare([QUEUE])
    for start in range(0, messages, PIECE):
        traffic.write(file, log.take(min(PIECE, messages - start)))
        await bench.broker.publish(file)
    done = await drain(bench.broker, QUEUE, bench.folder / "memory.db", messages)
    await bench.broker.delete([QUEUE])
    bench.say(f"  {messages:,} waiting: peak {done.peak_bytes / 1_000_000:.1f} MB")
    return {"messages": messages, "peak_bytes": done.peak_bytes, "rate": done.rate}


async def idle(bench: Bench, *, seconds: float) -> Result:
    """Return the share of a core that the worker uses while nothing arrives."""
    await bench.broker.declare([QUEUE])
    async with running_worker(bench.broker, QUEUE, bench.folder / "idle.db") as worker:
        await worker.consumes()
        await asyncio.sleep(SETTLING_SECONDS)  # noqa: TID251 - time that passes is the matter
        before = cpu_seconds(worker.pid)
        await asyncio.sleep(seconds)  # noqa: TID251 - as above
        share = (cpu_seconds(worker.pid) - before) / seconds
        await worker.stop()
    await bench.broker.delete([QUEUE])
    bench.say(f"  idle: {share:.2%} of a core")
    return {"seconds": seconds, "share": share}
