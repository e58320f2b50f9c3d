"""Sentences on the standard streams, and the preparation of these streams.

Imports very little, because `healthcheck` runs every few seconds.
"""

import os
import sys
from contextlib import suppress
from io import TextIOWrapper

from worker.sources import escaped


def prepare_streams() -> None:
    """Make the standard streams usable, even if the command was started with some closed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # It was closed. The next file to be opened would get its descriptor, and receive what
            # is written to the stream.
            discard(number)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - stays open until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # The terminal's character set may lack characters of a message.
            stream.reconfigure(errors="backslashreplace")


def discard(number: int) -> None:
    """Redirect a descriptor to the null device."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def say(text: str) -> None:
    """Print a sentence."""
    print(escaped(text))


def complain(message: str, hint: str | None = None) -> None:
    """Print what went wrong, and what to do about it, to standard error."""
    # If standard error is full or closed, the exit code still reports the failure.
    with suppress(OSError):
        print(escaped(message), file=sys.stderr)
        if hint:
            print(f"Hint: {escaped(hint)}", file=sys.stderr)
