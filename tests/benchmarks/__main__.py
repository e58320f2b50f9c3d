"""The benchmark: compares the worker with others, on this machine, with its own broker.

python -m tests.benchmarks quick | full [--document]
python -m tests.benchmarks throughput --rounds 1 --messages 20000
"""

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime

from tests.benchmarks import page, report
from tests.benchmarks.batch_size import batch_size
from tests.benchmarks.bench import Bench, Result, private_bench
from tests.benchmarks.contenders import COMPARED
from tests.benchmarks.dead_lettering import dead_lettering
from tests.benchmarks.footprint import idle, memory
from tests.benchmarks.late import late
from tests.benchmarks.latency import latency, latency_by_load
from tests.benchmarks.log_size import log_size
from tests.benchmarks.machine import machine
from tests.benchmarks.on_postgres import on_postgres
from tests.benchmarks.outage import outage
from tests.benchmarks.rebuilding import rebuild
from tests.benchmarks.scaling import scaling
from tests.benchmarks.tables import tables
from tests.benchmarks.takeover import takeover
from tests.benchmarks.throughput import throughput
from tests.processes import ROOT

SAVED = ROOT / "build" / "benchmarks.json"
BATCH_SIZES = (1, 10, 50, 100, 250, 500, 1_000, 2_000)
LOG_SIZES = (0, 100_000, 500_000, 1_000_000, 2_000_000, 5_000_000)

Part = Callable[[Bench], Awaitable[Result]]


def quick(
    rounds: int = 3, messages: int = 60_000, only: Sequence[str] = COMPARED
) -> dict[str, Part]:
    """Return the parts that together take about five minutes."""
    return {
        "throughput": lambda bench: throughput(bench, rounds=rounds, messages=messages, only=only),
        "on_postgres": lambda bench: on_postgres(bench, rounds=1, messages=messages),
        "scaling": lambda bench: scaling(bench, rounds=1, messages=messages // 2),
        "takeover": lambda bench: takeover(bench, rounds=1),
        "rebuild": lambda bench: rebuild(bench, rounds=rounds, messages=messages),
        "dead_lettering": lambda bench: dead_lettering(
            bench, rounds=rounds, messages=messages // 10
        ),
        "late": lambda bench: late(
            bench, rounds=1, messages=messages // 4, long_stream=messages // 2
        ),
        "memory": lambda bench: memory(bench, messages=messages),
        "idle": lambda bench: idle(bench, seconds=10),
        "latency": lambda bench: latency(bench, rates={"1,000/s": 1_000.0}, seconds=5, rounds=1),
    }


def full(
    rounds: int = 4, messages: int = 100_000, only: Sequence[str] = COMPARED
) -> dict[str, Part]:
    """Return all parts, which take half an hour."""
    most = messages * 10
    sizes = [size for size in LOG_SIZES if size <= messages * 50]
    return {
        "throughput": lambda bench: throughput(bench, rounds=rounds, messages=messages, only=only),
        "on_postgres": lambda bench: on_postgres(bench, rounds=rounds, messages=messages),
        "scaling": lambda bench: scaling(bench, rounds=rounds, messages=messages // 2),
        "takeover": lambda bench: takeover(bench, rounds=5),
        "rebuild": lambda bench: rebuild(bench, rounds=rounds, messages=messages * 2),
        "late": lambda bench: late(
            bench, rounds=rounds, messages=messages // 2, long_stream=messages
        ),
        "latency": lambda bench: latency_by_load(bench, seconds=messages / 10_000, rounds=3),
        "batch_size": lambda bench: batch_size(
            bench, sizes=BATCH_SIZES, rounds=2, messages=messages, seconds=messages / 10_000
        ),
        "log_size": lambda bench: log_size(bench, sizes=sizes, rounds=rounds, messages=messages),
        "outage": lambda bench: outage(bench, catch_up_seconds=messages / 2_500),
        "dead_lettering": lambda bench: dead_lettering(
            bench, rounds=rounds, messages=messages // 10
        ),
        "memory": lambda bench: memory(bench, messages=most),
        "idle": lambda bench: idle(bench, seconds=60),
    }


def main() -> int:
    options = _options()
    for library in ("aio_pika", "aiormq"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    given = {name: getattr(options, name) for name in ("rounds", "messages", "only")}
    told = {name: value for name, value in given.items() if value is not None}
    parts = quick(**told) if options.part == "quick" else full(**told)
    if options.part not in ("quick", "full"):
        parts = {options.part: parts[options.part]}
    on = report.console()
    started = time.monotonic()
    results = asyncio.run(_run(parts, on.print))
    report.show(on, tables(results))
    page.save(results, SAVED)
    on.print(f"{time.monotonic() - started:.0f} seconds; the figures are in {SAVED}.")
    if options.document:
        page.rewrite(results, ROOT)
        on.print(f"Rewritten: {page.PAGE}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=["quick", "full", *full()])
    parser.add_argument("--rounds", type=int, help="each contender's turns")
    parser.add_argument("--messages", type=int, help="waiting for each (100,000; quick: 60,000)")
    parser.add_argument("--only", nargs="+", choices=COMPARED, help="of the contenders")
    parser.add_argument("--document", action="store_true", help=f"rewrite {page.PAGE}")
    options = parser.parse_args()
    if options.document and (options.part not in ("quick", "full") or options.only):
        parser.error("the page shows all figures of one run, so --document needs quick or full")
    return options


async def _run(parts: Mapping[str, Part], say: Callable[[str], None]) -> Result:
    async with private_bench(say) as bench:
        results: Result = {
            "measured_at": datetime.now(UTC).isoformat(timespec="minutes"),
            "machine": await machine(bench.node, bench.folder),
        }
        for name, part in parts.items():
            say(f"{name} ...")
            results[name] = await part(bench)
    return results


if __name__ == "__main__":
    sys.exit(main())
