"""The worker's main job in a minute: publish a story, kill workers, and compare the rows.

`make demo` calls it. It exits with 0 if every claim holds, and with 1 if not. Whatever happens, it
leaves nothing behind: no queue on the broker, no process and no file.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.demo import picture, readmodel
from tests.demo.broker import Broker, Say, chosen, topology_of_this_run
from tests.demo.commands import command, read_json, settings_of
from tests.demo.load import KILLS, Load
from tests.demo.proof import Ending, claims
from tests.demo.running import run
from tests.demo.story import Story, tell

SEED = 42


def main() -> int:
    """Run the demo; return its exit code."""
    options = _options()
    return run(lambda on, say: _demo(on, say, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--private", action="store_true", help="start a RabbitMQ of its own")
    parser.add_argument("--seed", type=int, default=SEED, help="tell another story (default: 42)")
    return parser.parse_args()


async def _demo(on: Console, say: Say, options: argparse.Namespace) -> int:
    started = time.monotonic()
    story = tell(options.seed, parts=KILLS + 1)
    say(f"{story.summary} (seed {options.seed}).")
    async with (
        chosen(say, is_private=options.private) as url,
        topology_of_this_run(url) as broker,
    ):
        with tempfile.TemporaryDirectory(prefix="projection-demo-") as folder:
            ending = await _play(say, story, broker, Path(folder))
    proof = claims(story, ending)
    picture.show_numbers(on, story, ending)
    picture.show_chat(on, ending)
    picture.show_proof(on, proof)
    return picture.show_end(on, proof, time.monotonic() - started)


async def _play(say: Say, story: Story, broker: Broker, folder: Path) -> Ending:
    """Run the story, and collect everything that there is to know of its end."""
    database = folder / "projection.db"
    settings = settings_of(broker.url, broker.topology, database)
    measured = await Load(story, broker, settings, say).run()
    model = readmodel.read(database)
    chat_id, event_id = picture.worth_seeing(model)
    return Ending(
        measured=measured,
        model=model,
        dead_letters=await broker.take_dead_letters(),
        verified=await command(
            "rebuild", "--verify", "--limit", "3", settings=settings, folder=folder
        ),
        chat_id=chat_id,
        listed=await read_json("list", chat_id, settings=settings, folder=folder),
        event_id=event_id,
        shown=await read_json("show", event_id, settings=settings, folder=folder),
    )


if __name__ == "__main__":
    sys.exit(main())
