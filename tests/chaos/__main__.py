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

from tests.chaos.engine import Engine, S, fitting
from tests.chaos.postgres import POSTGRES
from tests.chaos.run import Plan, run
from tests.chaos.sqlite import SQLITE
from tests.chaos.table import show
from tests.rabbitmq import RabbitMQNode


def main() -> int:
    """Run the chaos test; return its exit code."""
    parser = _parser()
    options = parser.parse_args()
    if options.store == "postgres":
        return _main(POSTGRES, parser, options)
    return _main(SQLITE, parser, options)


def _main(engine: Engine[S], parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    chosen = [name for name in options.faults.split(",") if name]
    if unknown := set(chosen) - engine.faults.keys():
        known = ", ".join(engine.faults)
        parser.error(f"no such faults: {', '.join(sorted(unknown))}; there are {known}")
    plan = Plan(
        seed=options.seed,
        seconds=options.seconds,
        faults=chosen or fitting(engine, options.seconds, options.seed),
        prefetch=options.prefetch,
        batch_size=options.batch_size,
    )
    for library in ("aio_pika", "aiormq", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    on = Console(soft_wrap=False, width=None if sys.stdout.isatty() else 120)
    on.print(f"Seed {plan.seed}, {plan.seconds:.0f} seconds, faults: {', '.join(plan.faults)}")
    folder = Path(tempfile.mkdtemp(prefix="projection-chaos-"))
    is_good = False
    try:
        is_good = asyncio.run(_run(plan, engine, folder, on))
    finally:
        if is_good:
            shutil.rmtree(folder)
        else:
            on.print(f"NOT good. Seed {plan.seed}; all files are in {folder}", style="red")
    return 0 if is_good else 1


async def _run(plan: Plan, engine: Engine[S], folder: Path, on: Console) -> bool:
    async with RabbitMQNode(engine.broker) as node:
        verdict = await run(
            plan, engine, node, folder, lambda line: on.print(line, highlight=False)
        )
    show(on, verdict)
    return verdict.is_good


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=600, help="how long; each fault comes once at least"
    )
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=randrange(1_000_000))
    parser.add_argument("--faults", default="", help="some of them, separated by commas")
    parser.add_argument("--prefetch", type=int, default=1_000, help="of the workers")
    parser.add_argument("--batch-size", type=int, default=500, help="of the workers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
