"""A worker with an additional kind whose handler kills the process: `python -m tests.deadly run`.

It reproduces what a bug in a C library, or the kernel when memory is short, does to a worker.
"""

import os

from tests.builders import Message as WireMessage
from tests.builders import message
from worker.cli import main
from worker.messages import Message, Payload
from worker.registry import on
from worker.store.transaction import Transaction


class Detonated(Payload):
    """A payload with no further fields."""


async def detonated(tx: Transaction, message: Message[Detonated]) -> None:
    os._exit(66)


def deadly(event_id: str) -> WireMessage:
    """Return a message that kills every worker of this module."""
    return message("event_detonated", {"event_id": event_id})


if __name__ == "__main__":
    on("event_detonated")(detonated)
    main()
