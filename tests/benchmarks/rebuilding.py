"""How fast a rebuild folds a log, compared with sqlite3 writing the same log and rows."""

from dataclasses import asdict

from tests import database
from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.contenders import CONTENDERS, RAW_SQLITE, REBUILD
from tests.benchmarks.running import run
from tests.benchmarks.traffic import Traffic
from tests.oracle import expected_rows


async def rebuild(bench: Bench, *, rounds: int, messages: int) -> Result:
    """Run both on the same messages in every round; check the rows against the oracle."""
    expected = expected_rows(message.document for message in Traffic().take(messages))
    runs: dict[str, list[Result]] = {}
    for number in range(1, rounds + 1):
        for name in (REBUILD, RAW_SQLITE):
            file = bench.folder / f"{name}-{number}.db"
            done = await run(bench.broker, name, "", file, messages)
            assert database.rows(file) == expected, f"{name}: other rows than the oracle's"
            file.unlink()
            runs.setdefault(name, []).append(asdict(done))
            bench.say(f"  round {number}: {CONTENDERS[name].title}: {done.rate:,.0f} messages/s")
    return {"messages": messages, "rounds": rounds, "runs": runs}
