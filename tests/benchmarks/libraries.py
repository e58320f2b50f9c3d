"""What the SQLite of the package pysqlite3 costs, compared with Python's own.

python -m tests.benchmarks.libraries [--messages 60000] [--batch 1000] [--rounds 5]

In each round, each library in turn gets a process, in which the projector writes batches of
messages into a new file, without a broker, and the file is then rebuilt. Prints the medians of the
rounds, in microseconds per message: CPU time, and wall-clock time.
"""

import argparse
import asyncio
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.traffic import Traffic
from tests.processes import ROOT
from worker.deliveries import Delivery
from worker.messages import receive
from worker.projections import load
from worker.projector import Projector
from worker.rebuild import create_tables, rebuild
from worker.store.sqlite.store import Writer

MAX_BYTES = 1_048_576
MEASURE = """
import sys
from tests.benchmarks import libraries
libraries.measure(sys.argv[1], *map(int, sys.argv[2:]))
"""
# The library imported before the worker is used. The worker would refuse one that loses commits.
STANDARD = "import sqlite3; sqlite3.sqlite_version_info = (3, 51, 3)"
LIBRARIES = {"sqlite3": STANDARD, "pysqlite3": ""}


def measure(path: str, messages: int, batch: int) -> None:
    """Project and rebuild with the library of this process, and print the costs as JSON."""
    costs = asyncio.run(_costs(Path(path), messages, batch))
    print(json.dumps({f"{sqlite3.sqlite_version} {part}": cost for part, cost in costs.items()}))


async def _costs(path: Path, messages: int, batch: int) -> dict[str, list[float]]:
    registry = load()
    arrivals = [
        receive(registry.wire, Delivery(sent.body.encode(), tag=tag), MAX_BYTES)
        for tag, sent in enumerate(Traffic().take(messages), 1)
    ]
    async with Writer(path) as writer:
        await create_tables(writer, registry)
        projector = Projector(registry, writer)
        began = _clocks()
        for start in range(0, messages, batch):
            await projector.project(arrivals[start : start + batch])
        projected = _clocks()
        audit = await rebuild(writer, registry, lambda done, total: None)
        rebuilt = _clocks()
    assert (audit.messages, audit.differing) == (messages, 0)
    spans = {"projector": (began, projected), "rebuild": (projected, rebuilt)}
    return {
        part: [(b - a) / messages * 1e6 for a, b in zip(*span, strict=True)]
        for part, span in spans.items()
    }


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def main(messages: int, batch: int, rounds: int) -> None:
    costs: dict[str, list[list[float]]] = {}
    for number in range(rounds):
        for name, before in LIBRARIES.items():
            with tempfile.TemporaryDirectory() as folder:
                told = (f"{folder}/{number}.db", str(messages), str(batch))
                command = (sys.executable, "-c", f"{before}\n{MEASURE}", *told)
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            for part, cost in json.loads(done.stdout).items():
                costs.setdefault(f"{name} {part}", []).append(cost)
    for part, rows in sorted(costs.items(), key=lambda item: item[0].split()[2]):
        cpu, wall = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{part:28}{cpu:8.1f} CPU{wall:8.1f} wall")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    main(**vars(parser.parse_args()))
