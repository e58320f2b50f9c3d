"""How a backlog drains after the worker was down while publishers continued."""

import asyncio
import time

from tests.benchmarks import traffic
from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.latency import highest_rate
from tests.benchmarks.running import running_worker
from tests.benchmarks.traffic import Traffic

QUEUE = "benchmark.outage"
LOOK_SECONDS = 0.2
# The worker is up, then down, and then up for the rest of the time.
WORKS_SECONDS, AWAY_SECONDS = 5.0, 20.0


async def outage(bench: Bench, *, rate: float | None = None, catch_up_seconds: float) -> Result:
    """Publish evenly throughout, at half the highest rate unless a rate is given."""
    rate = rate or await highest_rate(bench) / 2
    file, database = bench.folder / "messages", bench.folder / "outage.db"
    messages = round(rate * (WORKS_SECONDS + AWAY_SECONDS + catch_up_seconds))
    traffic.write(file, Traffic().take(messages))
    await bench.broker.declare([QUEUE])
    depths: list[tuple[float, int]] = []
    async with bench.broker.publishing(file, rate) as publishing:
        async with running_worker(bench.broker, QUEUE, database) as worker:
            await worker.consumes()
            began = await publishing.began()
            watching = asyncio.create_task(_watch(bench, depths, began))
            await _until(began + WORKS_SECONDS)
            await worker.stop()
        stopped = time.monotonic() - began
        await _until(began + WORKS_SECONDS + AWAY_SECONDS)
        async with running_worker(bench.broker, QUEUE, database) as worker:
            await worker.consumes()
            started = time.monotonic() - began
            await publishing.ended()
            await bench.broker.until_empty(QUEUE)
            await worker.stop()
    watching.cancel()
    await bench.broker.delete([QUEUE])
    most = max(depth for _, depth in depths)
    # At this rate, messages that are in transit are not a backlog.
    drained = next((at for at, depth in depths if at > started and depth < rate / 20), None)
    bench.say(f"  {most:,} waited; drained after {(drained or 0) - started:.1f} seconds")
    return {
        "rate": rate,
        "stopped": stopped,
        "started": started,
        "drained": drained,
        "most": most,
        "depths": [[round(at, 2), depth] for at, depth in depths],
    }


async def _watch(bench: Bench, depths: list[tuple[float, int]], began: float) -> None:
    async with bench.broker.watching(QUEUE) as ready:
        while True:
            depth = await ready()
            depths.append((time.monotonic() - began, depth))
            await asyncio.sleep(LOOK_SECONDS)  # noqa: TID251 - a curve over time


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))  # noqa: TID251 - a timed story
