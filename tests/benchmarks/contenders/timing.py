"""How a contender reports its costs: lines of JSON on standard output.

They are measured from the first delivery to the last ack, for all contenders without the start of
the process, the imports and the connection to the broker.
"""

import argparse
import asyncio
import json
import sys
import time


class Clock:
    """Counts what is done, and records the time of the first and the last of it."""

    def __init__(self, messages: int) -> None:
        """Expect this many messages."""
        self._left = messages
        self._has_begun = False

    def begin(self) -> None:
        """Start the clock, unless it is running."""
        if not self._has_begun:
            self._has_begun = True
            _tell("began")

    def done(self, messages: int = 1) -> bool:
        """Count acked messages; return whether they were the last."""
        self._left -= messages
        if self._left == 0:
            _tell("ended")
        return self._left == 0

    @property
    def left(self) -> int:
        """How many messages remain."""
        return self._left


async def dismissed() -> None:
    """Wait until the runner has seen that the broker has every ack.

    The broker may still be reading them, and closing the connection would drop the rest.
    """
    await asyncio.to_thread(sys.stdin.read)


def _tell(what: str) -> None:
    line = {"event": what, "seconds": time.monotonic(), "cpu_seconds": time.process_time()}
    print(json.dumps(line), flush=True)


class Arguments(argparse.Namespace):
    """The arguments of every contender."""

    url: str
    queue: str
    database: str
    """Where it stores its rows, if it stores any: a file, or the address of a database."""
    messages: int
    """How many messages wait for it: the first of `Traffic`."""


def arguments() -> Arguments:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("queue")
    parser.add_argument("database")
    parser.add_argument("messages", type=int)
    return parser.parse_args(namespace=Arguments())
