"""How a contender tells what it took: lines of JSON on standard output.

From the first delivery to the last ack; the start of the process, its imports and the connection
to the broker count for none of them.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path


class Clock:
    """Counts what is done, and tells the time at the first and the last of it."""

    def __init__(self, messages: int) -> None:
        """Expect so many messages."""
        self._left = messages
        self._has_begun = False

    def begin(self) -> None:
        """Begin, unless it has begun."""
        if not self._has_begun:
            self._has_begun = True
            _tell("began")

    def done(self, messages: int = 1) -> bool:
        """Count messages that are acked; return whether they were the last."""
        self._left -= messages
        if self._left == 0:
            _tell("ended")
        return self._left == 0

    @property
    def left(self) -> int:
        """How many messages are still to be done."""
        return self._left


async def dismissed() -> None:
    """Wait until the runner has seen that the broker has every ack.

    The broker may still be reading them, and an end of the connection would drop the rest.
    """
    await asyncio.to_thread(sys.stdin.read)


def _tell(what: str) -> None:
    line = {"event": what, "seconds": time.monotonic(), "cpu_seconds": time.process_time()}
    print(json.dumps(line), flush=True)


class Arguments(argparse.Namespace):
    """What every contender is told."""

    url: str
    queue: str
    database: Path
    """Where it keeps its rows, if it keeps any."""
    messages: int
    """How many wait for it: the first of `Traffic`."""


def arguments() -> Arguments:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("queue")
    parser.add_argument("database", type=Path)
    parser.add_argument("messages", type=int)
    return parser.parse_args(namespace=Arguments())
