"""How fast a worker on PostgreSQL drains its partitions, beside others with the same effect."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tests import database
from tests.benchmarks import traffic
from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.contenders import COMPARED_ON_POSTGRES, CONTENDERS, WORKER_POSTGRES
from tests.benchmarks.postgres import ROWS, Postgres, private_postgres
from tests.benchmarks.running import Run, run
from tests.benchmarks.traffic import Sent, Traffic
from tests.oracle import expected_rows
from worker.settings import Settings

PARTITIONS: int = Settings.model_fields["partitions"].default
"""As many as a worker has that is told nothing else."""


async def on_postgres(bench: Bench, *, rounds: int, messages: int) -> Result:
    """Run each on the same messages in every round; check the rows against the oracle."""
    sent = Traffic().take(messages)
    runs: dict[str, list[Run]] = {name: [] for name in COMPARED_ON_POSTGRES}
    async with private_postgres() as postgres:
        for number in range(1, rounds + 1):
            for name, done in runs.items():
                count = max(1, round(messages * CONTENDERS[name].share))
                done.append(await _run(bench, postgres, name, sent[:count], number))
                title = CONTENDERS[name].title
                bench.say(f"  round {number}: {title}: {done[-1].rate:,.0f} messages/s")
    return {
        "messages": messages,
        "rounds": rounds,
        "runs": {name: [asdict(each) for each in done] for name, done in runs.items()},
    }


async def _run(
    bench: Bench, postgres: Postgres, name: str, sent: Sequence[Sent], number: int
) -> Run:
    queue, file = f"benchmark.{name}", bench.folder / "messages"
    partitions = PARTITIONS if name == WORKER_POSTGRES else None
    await bench.broker.declare([queue], partitions)
    traffic.write(file, sent)
    await bench.broker.publish(file)
    if CONTENDERS[name].is_on_postgres:
        async with postgres.database() as place:
            told = (bench.broker, name, queue, place.url, len(sent))
            done = await run(*told, lambda: postgres.cpu().total)
            rows = await place.query(ROWS)
    else:
        kept = bench.folder / f"{name}-{number}.db"
        done = await run(bench.broker, name, queue, kept, len(sent))
        rows = database.rows(kept)
    assert rows == _expected(sent), f"{name}: other rows than the oracle's"
    await bench.broker.delete([queue], partitions)
    return done


def _expected(sent: Sequence[Sent]) -> list[tuple[Any, ...]]:
    return expected_rows(message.document for message in sent)
