"""How long it takes from publishing a message until another process can read its effect.

Measured from the time at which the message was due to be published, so that a delayed publisher
does not hide any latency.
"""

from array import array
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.benchmarks import traffic
from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.figures import percentile
from tests.benchmarks.running import running_worker
from tests.benchmarks.spawning import Program, program
from tests.benchmarks.traffic import Traffic
from tests.waiting import patiently

QUEUE = "benchmark.latency"
# The first second is for caches and for the broker to warm up.
WARMING_SECONDS = 1.0
SHARES = (0.5, 0.9, 0.99, 0.999, 1.0)
# These are enough for a curve.
CURVE_POINTS = 400
FINISH_SECONDS = 120
PROBE_SECONDS = 4.0
# A worker that keeps up is less than this behind when the publisher ends.
BEHIND_SECONDS = 0.2
LOWEST_RATE, HALVINGS = 2_000.0, 4
HIGHEST = "highest rate"


async def latency(bench: Bench, *, rates: dict[str, float], seconds: float, rounds: int) -> Result:
    """Measure the worker and a bare receiver in turn, at each of these even rates."""
    loads = []
    for name, rate in rates.items():
        ours: list[list[float]] = []
        floor: list[list[float]] = []
        for number in range(1, rounds + 1):
            ours.append(await delays(bench, rate=rate, seconds=seconds))
            floor.append(await receiving(bench, rate=rate, seconds=seconds))
            figures = [
                f"{percentile(found[-1], share) * 1_000:.2f}"
                for found in (ours, floor)
                for share in (0.5, 0.99)
            ]
            bench.say(
                f"  round {number}: {name}, {rate:,.0f} messages/s: p50 {figures[0]} ms, p99 "
                f"{figures[1]} ms; a bare receiver {figures[2]} and {figures[3]} ms"
            )
        loads.append(summary(name, rate, ours) | {"floor": summary(name, rate, floor)})
    return {"seconds": seconds, "rounds": rounds, "loads": loads}


async def latency_by_load(bench: Bench, *, seconds: float, rounds: int) -> Result:
    """Measure at 1,000 messages a second, and at 50 and 80 % of the highest rate."""
    highest = await highest_rate(bench)
    rates = {"1,000/s": 1_000.0, "50 %": highest * 0.5, "80 %": highest * 0.8}
    found = await latency(bench, rates=rates, seconds=seconds, rounds=rounds)
    return {"highest_rate": highest, **found}


async def highest_rate(bench: Bench) -> float:
    """Find the highest even rate that the worker keeps up with, once, by bisection.

    It is lower than the rate at which a queue drains, because publisher, broker and worker share
    the cores.
    """
    if HIGHEST in bench.known:
        return bench.known[HIGHEST]
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
    bench.known[HIGHEST] = keeps_up
    return keeps_up


async def _keeps_up(bench: Bench, rate: float) -> bool:
    found = await delays(bench, rate=rate, seconds=PROBE_SECONDS)
    return percentile(found[-round(rate / 2) :], 0.5) < BEHIND_SECONDS


async def delays(bench: Bench, *, rate: float, seconds: float, **settings: object) -> list[float]:
    """Publish evenly, and return the seconds that each message took, without the first ones."""
    file, database, moments = (bench.folder / name for name in ("messages", "l.db", "moments"))
    messages = await _prepare(bench, file, rate, seconds)
    async with running_worker(bench.broker, QUEUE, database, **settings) as worker:
        await worker.consumes()
        async with program("reader", database, file, moments) as reader:
            await reader.told()
            began = await _publish(bench, file, rate, reader)
        await worker.stop()
    await bench.broker.delete([QUEUE])
    database.unlink()
    return _found(moments, messages, began, rate)


async def receiving(bench: Bench, *, rate: float, seconds: float) -> list[float]:
    """Publish in the same way to a consumer that does nothing; return the same as `delays`."""
    file, moments = bench.folder / "messages", bench.folder / "moments"
    messages = await _prepare(bench, file, rate, seconds)
    arguments = (bench.broker.url, QUEUE, moments, messages)
    async with program("contenders.receiver", *arguments) as receiver:
        await receiver.told()
        began = await _publish(bench, file, rate, receiver)
    await bench.broker.delete([QUEUE])
    return _found(moments, messages, began, rate)


async def _prepare(bench: Bench, file: Path, rate: float, seconds: float) -> int:
    messages = round(rate * (seconds + WARMING_SECONDS))
    traffic.write(file, Traffic().take(messages))
    await bench.broker.declare([QUEUE])
    return messages


async def _publish(bench: Bench, file: Path, rate: float, watcher: Program) -> float:
    """Publish a file until the watcher has seen all of it; return when it began."""
    async with bench.broker.publishing(file, rate) as publishing:
        began = await publishing.began()
        await publishing.ended()
        async with patiently(FINISH_SECONDS):
            await watcher.finish()
    return began


def _found(moments: Path, messages: int, began: float, rate: float) -> list[float]:
    seen = array("d", moments.read_bytes())
    assert len(seen) == messages, f"{messages - len(seen)} messages were never seen"
    first = round(rate * WARMING_SECONDS)
    return [moment - began - place / rate for place, moment in enumerate(seen)][first:]


def summary(name: str, rate: float, rounds: Sequence[Sequence[float]]) -> Result:
    """Return the points of a distribution to show, in milliseconds: medians of the rounds."""
    ordered = [sorted(found) for found in rounds]
    shares = [place / CURVE_POINTS for place in range(1, CURVE_POINTS)] + [0.999, 0.9999, 1.0]

    def at(share: float) -> float:
        return median(percentile(found, share) for found in ordered) * 1_000

    return {
        "name": name,
        "rate": rate,
        "messages": sum(map(len, rounds)),
        "percentiles_ms": {str(share): at(share) for share in SHARES},
        "curve_ms": [[share, round(at(share), 3)] for share in shares],
    }
