"""Sentences on the standard streams, and what these streams must be for that.

Imports next to nothing, because `healthcheck` runs every few seconds.
"""

import os
import sys
from contextlib import suppress
from io import TextIOWrapper

from worker.sources import escaped


def prepare_streams() -> None:
    """Make the standard streams usable, whatever the command was started with."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # It was closed. The next file that is opened would get its number, and what is meant
            # for the stream.
            discard(number)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - a descriptor, for as long as the process lasts
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # The terminal's character set may lack what a message has.
            stream.reconfigure(errors="backslashreplace")


def discard(number: int) -> None:
    """Let a descriptor lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def say(text: str) -> None:
    """Print a sentence."""
    print(escaped(text))


def complain(message: str, hint: str | None = None) -> None:
    """Print to standard error what went wrong, and what to do about it."""
    # Where that is full or gone, the exit code still says that something is wrong.
    with suppress(OSError):
        print(escaped(message), file=sys.stderr)
        if hint:
            print(f"Hint: {escaped(hint)}", file=sys.stderr)
