"""Everything that can go wrong, for as long as you like, and what must be true afterwards.

It prints the seed first: the same seed chooses the same faults in the same order. It exits with 0
if all checks hold, and otherwise with 1 and keeps its folder.
"""

import argparse
import asyncio
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from random import randrange

from rich.console import Console

from tests.chaos.faults import FAULTS
from tests.chaos.run import Plan, run
from tests.chaos.table import show
from tests.rabbitmq import RabbitMQNode


def main() -> int:
    """Run the chaos test; return its exit code."""
    plan = _plan()
    for library in ("aio_pika", "aiormq", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    on = Console(soft_wrap=False, width=None if sys.stdout.isatty() else 120)
    on.print(f"Seed {plan.seed}, {plan.seconds:.0f} seconds, faults: {', '.join(plan.faults)}")
    folder = Path(tempfile.mkdtemp(prefix="projection-chaos-"))
    is_good = False
    try:
        is_good = asyncio.run(_run(plan, folder, on))
    finally:
        if is_good:
            shutil.rmtree(folder)
        else:
            on.print(f"NOT good. Seed {plan.seed}; all files are in {folder}", style="red")
    return 0 if is_good else 1


async def _run(plan: Plan, folder: Path, on: Console) -> bool:
    async with RabbitMQNode() as node:
        verdict = await run(plan, node, folder, lambda line: on.print(line, highlight=False))
    show(on, verdict)
    return verdict.is_good


def _plan() -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=600, help="how long; each fault comes once at least"
    )
    parser.add_argument("--seed", type=int, default=randrange(1_000_000))
    parser.add_argument("--faults", default="", help=f"some of: {', '.join(FAULTS)}")
    parser.add_argument("--prefetch", type=int, default=1_000, help="of the workers")
    parser.add_argument("--batch-size", type=int, default=500, help="of the workers")
    options = parser.parse_args()
    chosen = [name for name in options.faults.split(",") if name]
    if unknown := set(chosen) - FAULTS.keys():
        parser.error(f"no such faults: {', '.join(sorted(unknown))}")
    return Plan(
        seed=options.seed,
        seconds=options.seconds,
        faults=chosen or fitting(options.seconds),
        prefetch=options.prefetch,
        batch_size=options.batch_size,
    )


def fitting(seconds: float) -> list[str]:
    """Return the faults that leave time for others in a run of this length."""
    return [
        name
        for name, fault in FAULTS.items()
        if fault.is_usual
        and fault.longest <= seconds / 10
        and (name != "sync" or shutil.which("strace"))
    ]


if __name__ == "__main__":
    sys.exit(main())
