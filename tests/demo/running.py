"""Runs a demo for a person: errors are one sentence, and a signal ends it but not its cleanup."""

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable

from aio_pika.exceptions import AMQPError
from rich.console import Console

from tests.demo import picture
from tests.demo.broker import DemoFailed, Say
from tests.servers import NodeFailed
from worker.errors import WorkerError

LAST_LINES = 12
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Demo = Callable[[Console, Say], Awaitable[int]]


def run(demo: Demo) -> int:
    """Run a demo, which returns its exit code; return that, or the one for what has ended it."""
    # These libraries' errors arrive as exceptions.
    for library in ("aio_pika", "aiormq"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        return asyncio.run(_with_signals(demo))
    except (DemoFailed, NodeFailed, WorkerError, AMQPError, AssertionError, OSError) as error:
        # The tools shared with the tests raise AssertionError. If a text has more lines,
        # they end with the output of a worker or a node.
        first, *rest = str(error).splitlines() or [type(error).__name__]
        print("\n".join([f"The demo failed: {first}", *rest[-LAST_LINES:]]), file=sys.stderr)
        return 1


async def _with_signals(demo: Demo) -> int:
    received: list[signal.Signals] = []
    on = picture.console()

    def say(sentence: str) -> None:
        # If it is cancelled while it connects or closes, aiormq sometimes continues regardless.
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise asyncio.CancelledError
        on.print(sentence)

    task = asyncio.ensure_future(demo(on, say))

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
