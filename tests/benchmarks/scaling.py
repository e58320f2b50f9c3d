"""What several workers do together on PostgreSQL and partitions, and what each process costs.

The workers have started and have their partitions before anything is published, and are frozen
until everything is. The clock runs from then until most of it is committed. So neither the
start of a worker, nor the publisher, nor the end at which one worker still has messages and another
has none is part of the figures.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.benchmarks import traffic
from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.locks import LockWaits, lock_waits
from tests.benchmarks.on_postgres import PARTITIONS
from tests.benchmarks.postgres import ROWS, Postgres, private_postgres
from tests.benchmarks.traffic import Traffic
from tests.benchmarks.usage import busy_seconds
from tests.benchmarks.workers import Workers, running_workers
from tests.oracle import expected_rows
from tests.postgres import PostgresDatabase

QUEUE = "benchmark.scaling"
TOGETHER = (1, 2, 4)
"""How many workers share the partitions."""
MOST = 0.7
"""The share of all messages whose commit ends the measurement.

At the end about as many are delivered and unsettled as at the beginning, when the broker has filled
the windows of the frozen workers. So as many are delivered as are settled in between.
"""


@dataclass(frozen=True, slots=True)
class Shared:
    """What it cost some workers to take a backlog together."""

    messages: int
    seconds: float
    cpu_seconds: float
    """Of all workers."""
    broker_cpu_seconds: float
    sessions_cpu_seconds: float
    """Of PostgreSQL's processes that serve the workers."""
    background_cpu_seconds: float
    """Of PostgreSQL's other processes."""
    busy_seconds: float
    """CPU time of the whole machine, with everything else that ran on it."""
    wal_bytes: int
    late: int
    mean_batch: float
    """How many messages a transaction had, over the whole backlog."""
    lock_share: float
    """How much of its time a worker waited for locks."""
    peak_bytes: int
    """Of the largest worker, since its start."""
    partitions: list[int]
    """How many partitions each worker had, the fewest first."""


async def scaling(
    bench: Bench, *, rounds: int, messages: int, together: Sequence[int] = TOGETHER
) -> Result:
    """Let one worker, then two, then four take the same messages, round after round."""
    runs: dict[int, list[Shared]] = {number: [] for number in together}
    sent = Traffic().take(messages)
    expected = expected_rows(message.document for message in sent)
    traffic.write(bench.folder / "messages", sent)
    async with private_postgres() as postgres:
        for number in range(1, rounds + 1):
            for workers, done in runs.items():
                async with postgres.database() as database:
                    run = await _share(bench, postgres, database, workers, messages)
                    assert await database.query(ROWS) == expected, "other rows than the oracle's"
                done.append(run)
                rate = run.messages / run.seconds
                bench.say(f"  round {number}: {workers} workers: {rate:,.0f} messages/s")
    return {
        "messages": messages,
        "rounds": rounds,
        "partitions": PARTITIONS,
        "cores": os.cpu_count() or 1,
        "runs": {str(workers): [asdict(each) for each in done] for workers, done in runs.items()},
    }


async def _share(
    bench: Bench, postgres: Postgres, database: PostgresDatabase, number: int, messages: int
) -> Shared:
    await bench.broker.declare([QUEUE], PARTITIONS)
    async with (
        running_workers(bench.broker, QUEUE, database.url, number) as workers,
        lock_waits(postgres, database) as waits,
    ):
        partitions = await bench.broker.until_spread(QUEUE, PARTITIONS, number)
        with workers.frozen():
            await bench.broker.publish(bench.folder / "messages")
            before = await _spent(bench, postgres, workers, waits)
        outcomes = await workers.until_settled(round(messages * MOST))
        after = await _spent(bench, postgres, workers, waits)
        await workers.until_settled(messages)
        peak, batches = workers.peak_bytes(), await workers.batches()
        await workers.stop()
    await bench.broker.delete([QUEUE], PARTITIONS)
    spent = {name: after[name] - before[name] for name in before}
    looks, waiting = spent.pop("looks"), spent.pop("waiting")
    return Shared(
        **spent,
        messages=sum(outcomes.values()),
        late=outcomes["late"],
        mean_batch=messages / batches,
        lock_share=waiting / max(1, looks) / number,
        peak_bytes=peak,
        partitions=partitions,
    )


async def _spent(
    bench: Bench, postgres: Postgres, workers: Workers, waits: LockWaits
) -> dict[str, Any]:
    """Return what everything has cost so far, and what has been seen of locks."""
    server = postgres.cpu(without=waits.pid)
    return {
        "seconds": time.monotonic(),
        "cpu_seconds": workers.cpu_seconds(),
        "broker_cpu_seconds": bench.broker.cpu_seconds(),
        "sessions_cpu_seconds": server.sessions,
        "background_cpu_seconds": server.background,
        "busy_seconds": busy_seconds(),
        "wal_bytes": await postgres.wal_bytes(),
        "looks": waits.looks,
        "waiting": waits.waiting,
    }
