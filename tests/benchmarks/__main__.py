"""The benchmark: what the worker is compared with, on this machine, with a broker of its own.

python -m tests.benchmarks throughput --rounds 1 --messages 20000
"""

import argparse
import asyncio
import sys

from tests.benchmarks import report
from tests.benchmarks.bench import private_bench
from tests.benchmarks.throughput import throughput


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("part", choices=["throughput"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=100_000)
    asyncio.run(_run(parser.parse_args()))
    return 0


async def _run(options: argparse.Namespace) -> None:
    on = report.console()
    async with private_bench(on.print) as bench:
        found = await throughput(bench, rounds=options.rounds, messages=options.messages)
    report.show(on, [report.throughput(found)])


if __name__ == "__main__":
    sys.exit(main())
