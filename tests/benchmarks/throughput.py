"""How fast each contender drains a queue, in turn, round after round."""

from collections.abc import Sequence
from dataclasses import asdict

from tests import database
from tests.benchmarks import traffic
from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.contenders import COMPARED, CONTENDERS
from tests.benchmarks.running import Run, run
from tests.benchmarks.traffic import Sent, Traffic
from tests.oracle import Row, expected_rows


async def throughput(
    bench: Bench, *, rounds: int, messages: int, only: Sequence[str] = COMPARED
) -> Result:
    """Run each on the same messages in every round; check the rows against the oracle."""
    names = [name for name in COMPARED if name in only]
    counts = {name: max(1, round(messages * CONTENDERS[name].share)) for name in names}
    sent = Traffic().take(messages)
    expected = {count: _expected(sent[:count]) for count in set(counts.values())}
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(1, rounds + 1):
        queues = {name: f"benchmark.{name}.{number}" for name in names}
        await _fill(bench, sent, {queues[n]: counts[n] for n in names if _needs(n)})
        for name in names:
            file = bench.folder / f"{name}-{number}.db"
            done = await run(bench.broker, name, queues[name], file, counts[name])
            if CONTENDERS[name].keeps_rows:
                rows = database.rows(file)
                assert rows == expected[counts[name]], f"{name}: other rows than the oracle's"
                file.unlink()
            runs[name].append(done)
            bench.say(f"  round {number}: {CONTENDERS[name].title}: {done.rate:,.0f} messages/s")
        await bench.broker.delete([queue for name, queue in queues.items() if _needs(name)])
    return {
        "messages": messages,
        "rounds": rounds,
        "runs": {name: [asdict(each) for each in done] for name, done in runs.items()},
    }


def _needs(name: str) -> bool:
    return CONTENDERS[name].needs_queue


async def _fill(bench: Bench, sent: Sequence[Sent], counts: dict[str, int]) -> None:
    """Put the first messages into every queue; what all queues need is published once."""
    await bench.broker.declare(list(counts))
    published = 0
    for count in sorted(set(counts.values())):
        file = bench.folder / "messages"
        traffic.write(file, sent[published:count])
        await bench.broker.publish(file)
        published = count
        await bench.broker.unbind([queue for queue, wanted in counts.items() if wanted == count])


def _expected(sent: Sequence[Sent]) -> list[Row]:
    return expected_rows(message.document for message in sent)
