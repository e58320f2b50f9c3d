"""The worker's main job in a minute: publish a story, kill workers, and compare the rows.

`make demo` calls it. It exits with 0 if every claim holds, and with 1 if not. Whatever happens, it
leaves nothing behind: no queue on the broker, no process and no file.
"""

import argparse
import asyncio
import logging
import signal
import sys
import tempfile
import time
from pathlib import Path

from aio_pika.exceptions import AMQPError
from rich.console import Console

from tests.demo import picture, readmodel
from tests.demo.broker import Broker, DemoFailed, Say, chosen, topology_of_this_run
from tests.demo.commands import command, read_json, settings_of
from tests.demo.load import KILLS, Load
from tests.demo.proof import Ending, claims
from tests.demo.story import Story, tell
from tests.servers import NodeFailed
from worker.errors import WorkerError

SEED = 42
LAST_LINES = 12
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the demo; return its exit code."""
    options = _options()
    # These libraries' errors arrive as exceptions.
    for library in ("aio_pika", "aiormq"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        return asyncio.run(_with_signals(picture.console(), options))
    except (DemoFailed, NodeFailed, WorkerError, AMQPError, AssertionError, OSError) as error:
        # The tools shared with the tests raise AssertionError. If a text has more lines,
        # they end with the output of a worker or a node.
        first, *rest = str(error).splitlines() or [type(error).__name__]
        print("\n".join([f"The demo failed: {first}", *rest[-LAST_LINES:]]), file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--private", action="store_true", help="start a RabbitMQ of its own")
    parser.add_argument("--seed", type=int, default=SEED, help="tell another story (default: 42)")
    return parser.parse_args()


async def _with_signals(on: Console, options: argparse.Namespace) -> int:
    """Run the demo so that a signal ends it, but not its cleanup."""
    received: list[signal.Signals] = []
    task = asyncio.ensure_future(_demo(on, options))

    def end(number: signal.Signals) -> None:
        if not received:
            received.append(number)
            task.cancel()

    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        print("Ended by a signal; everything is cleaned up.", file=sys.stderr)
        return 128 + received[0]


async def _demo(on: Console, options: argparse.Namespace) -> int:
    def say(sentence: str) -> None:
        # If it is cancelled while it connects or closes, aiormq sometimes continues regardless.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
        on.print(sentence)

    started = time.monotonic()
    story = tell(options.seed, parts=KILLS + 1)
    say(
        f"The story: {story.events:,} events in {len(story.chats)} chats, {len(story.messages):,} "
        f"messages. They are published in no order,\n{story.copies:,} of them twice, among "
        f"{len(story.broken)} broken ones (seed {options.seed})."
    )
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
    seconds = time.monotonic() - started
    on.print()
    if any(claim.differences for claim in proof):
        on.print(f"NOT as claimed (see above). {seconds:.0f} seconds.", style="bold red")
        return 1
    on.print(
        f"All as claimed, in {seconds:.0f} seconds. Its exchanges, queues, files and processes are "
        "gone again.",
        style="bold green",
    )
    return 0


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
