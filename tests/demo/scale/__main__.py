"""Several workers in a minute: they share partitions, come and go, and the rows are right.

`make demo-scale` calls it. It exits with 0 if every claim holds, and with 1 if not. It starts its
own RabbitMQ and its own PostgreSQL, and whatever happens, it leaves nothing behind.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.demo import picture
from tests.demo.broker import Say
from tests.demo.commands import command
from tests.demo.running import run
from tests.demo.scale.acts import LATER, PARTS, Acts
from tests.demo.scale.proof import Ending, claims
from tests.demo.scale.servers import servers
from tests.demo.story import tell

SEED = 42


def main() -> int:
    """Run the demo; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo.scale", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED, help="tell another story (default: 42)")
    seed = parser.parse_args().seed
    return run(lambda on, say: _demo(on, say, seed))


async def _demo(on: Console, say: Say, seed: int) -> int:
    started = time.monotonic()
    story = tell(seed, PARTS)
    say(f"{story.summary} (seed {seed}).")
    async with servers(say) as running:
        with tempfile.TemporaryDirectory(prefix="projection-demo-") as name:
            folder = Path(name)
            measured = await Acts(story, running, folder, say).run()
            settings = running.settings(folder, LATER)
            verify = ("rebuild", "--verify", "--limit", "3")
            ending = Ending(
                measured=measured,
                model=await running.read(),
                dead_letters=await running.broker.take_dead_letters(),
                verified=await command(*verify, settings=settings, folder=folder),
            )
    proof = claims(story, ending)
    picture.show_proof(on, proof)
    return picture.show_end(on, proof, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
