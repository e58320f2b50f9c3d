"""How long a message takes from the publisher until another process can read its effect.

Counted from the moment at which it was due to be published, so that a publisher that is held up
hides nothing.
"""

import asyncio
from array import array

from tests.benchmarks import traffic
from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.figures import percentile
from tests.benchmarks.running import running_worker
from tests.benchmarks.spawning import program
from tests.benchmarks.traffic import Traffic

QUEUE = "benchmark.latency"
# The first second is for caches and for the broker to find its pace.
WARMING_SECONDS = 1.0
SHARES = (0.5, 0.9, 0.99, 0.999, 1.0)
# Enough for a curve.
CURVE_POINTS = 400
FINISH_SECONDS = 120
PROBE_SECONDS = 4.0
# Whoever keeps up is less than this behind when the publisher ends.
BEHIND_SECONDS = 0.2
LOWEST_RATE, HALVINGS = 2_000.0, 4


async def latency(bench: Bench, *, rates: dict[str, float], seconds: float) -> Result:
    """Measure at each of these even rates."""
    loads = []
    for name, rate in rates.items():
        found = await delays(bench, rate=rate, seconds=seconds)
        loads.append(summary(name, rate, found))
        half, most = percentile(found, 0.5) * 1_000, percentile(found, 0.99) * 1_000
        bench.say(f"  {name}, {rate:,.0f} messages/s: p50 {half:.2f} ms, p99 {most:.2f} ms")
    return {"seconds": seconds, "loads": loads}


async def latency_by_load(bench: Bench, *, seconds: float) -> Result:
    """Measure at 1,000 messages a second, and at 50 and 80 % of the highest rate."""
    highest = await highest_rate(bench)
    rates = {"1,000/s": 1_000.0, "50 %": highest * 0.5, "80 %": highest * 0.8}
    return {"highest_rate": highest, **await latency(bench, rates=rates, seconds=seconds)}


async def highest_rate(bench: Bench) -> float:
    """Find the highest even rate that the worker keeps up with, by halving the doubt.

    Lower than what it drains: publisher, broker and worker share the cores.
    """
    keeps_up, falls_behind = LOWEST_RATE, LOWEST_RATE * 2
    while await _keeps_up(bench, falls_behind):
        keeps_up, falls_behind = falls_behind, falls_behind * 2
    for _ in range(HALVINGS):
        middle = (keeps_up + falls_behind) / 2
        if await _keeps_up(bench, middle):
            keeps_up = middle
        else:
            falls_behind = middle
    bench.say(f"  keeps up with {keeps_up:,.0f} messages/s, not with {falls_behind:,.0f}")
    return keeps_up


async def _keeps_up(bench: Bench, rate: float) -> bool:
    found = await delays(bench, rate=rate, seconds=PROBE_SECONDS)
    return percentile(found[-round(rate / 2) :], 0.5) < BEHIND_SECONDS


async def delays(bench: Bench, *, rate: float, seconds: float, **settings: object) -> list[float]:
    """Publish evenly, and give the seconds that each message took, but for the first ones."""
    messages = round(rate * (seconds + WARMING_SECONDS))
    file, database, moments = (bench.folder / name for name in ("messages", "l.db", "moments"))
    traffic.write(file, Traffic().take(messages))
    await bench.broker.declare([QUEUE])
    async with running_worker(bench.broker, QUEUE, database, **settings) as worker:
        await worker.consumes()
        async with (
            program("reader", database, file, moments) as reader,
            bench.broker.publishing(file, rate) as publishing,
        ):
            await reader.told()
            began = await publishing.began()
            await publishing.ended()
            async with asyncio.timeout(FINISH_SECONDS):
                await reader.finish()
        await worker.stop()
    await bench.broker.delete([QUEUE])
    seen = array("d", moments.read_bytes())
    assert len(seen) == messages, f"{messages - len(seen)} messages were never seen"
    database.unlink()
    first = round(rate * WARMING_SECONDS)
    return [moment - began - place / rate for place, moment in enumerate(seen)][first:]


def summary(name: str, rate: float, found: list[float]) -> Result:
    """Keep what is shown of a distribution, in milliseconds."""
    ordered = sorted(found)
    shares = [place / CURVE_POINTS for place in range(1, CURVE_POINTS)] + [0.999, 0.9999, 1.0]
    return {
        "name": name,
        "rate": rate,
        "messages": len(found),
        "percentiles_ms": {str(share): percentile(ordered, share) * 1_000 for share in SHARES},
        "curve_ms": [[share, round(percentile(ordered, share) * 1_000, 3)] for share in shares],
    }
