"""What late messages cost, compared with the same messages in order."""

import asyncio
import json
import sys

from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.folding import CASES
from tests.processes import ROOT


async def late(bench: Bench, *, rounds: int, messages: int, long_stream: int) -> Result:
    """Project each case in turn, each in its own process, round after round."""
    runs: dict[str, list[Result]] = {case: [] for case in CASES}
    for number in range(1, rounds + 1):
        for case, done in runs.items():
            count = messages if case in ("in_order", "shuffled") else long_stream
            file = bench.folder / f"{case}-{number}.db"
            run = await _run(case, str(count), str(file))
            file.unlink()
            done.append(run)
            bench.say(
                f"  round {number}: {case}: {run['messages'] / run['seconds']:,.0f} messages/s"
            )
    return {"rounds": rounds, "messages": messages, "long_stream": long_stream, "runs": runs}


async def _run(*arguments: str) -> Result:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.benchmarks.folding",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, arguments
    return dict(json.loads(out))
