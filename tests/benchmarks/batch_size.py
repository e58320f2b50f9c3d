"""How the batch size affects throughput and latency."""

from collections.abc import Sequence
from dataclasses import asdict

from tests.benchmarks import traffic
from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.figures import percentile
from tests.benchmarks.latency import delays, highest_rate
from tests.benchmarks.running import drain
from tests.benchmarks.traffic import Traffic

QUEUE = "benchmark.batches"
# With a few messages for each commit, all of them would take too long.
MESSAGES_OF_A_BATCH = 2_000


async def batch_size(
    bench: Bench, *, sizes: Sequence[int], rounds: int, messages: int, seconds: float
) -> Result:
    """Drain with each size in every round; then measure latency at half the highest load."""
    runs: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    sent = Traffic().take(messages)
    file, database = bench.folder / "messages", bench.folder / "batch.db"
    for number in range(1, rounds + 1):
        for size in sizes:
            count = min(messages, size * MESSAGES_OF_A_BATCH)
            traffic.write(file, sent[:count])
            await bench.broker.declare([QUEUE])
            await bench.broker.publish(file)
            done = await drain(bench.broker, QUEUE, database, count, batch_size=size)
            await bench.broker.delete([QUEUE])
            database.unlink()
            runs[size].append(asdict(done))
            bench.say(f"  round {number}: batches of {size}: {done.rate:,.0f} messages/s")
    rate = await highest_rate(bench) / 2
    p99 = {}
    for size in sizes:
        found = await delays(bench, rate=rate, seconds=seconds, batch_size=size)
        p99[size] = percentile(found, 0.99) * 1_000
        bench.say(f"  batches of {size}, {rate:,.0f} messages/s: p99 {p99[size]:.2f} ms")
    return {
        "messages": messages,
        "rounds": rounds,
        "rate": rate,
        "sizes": [{"size": n, "runs": runs[n], "p99_ms": p99[n]} for n in sizes],
    }
