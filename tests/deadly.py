"""A worker with one more kind, whose handler ends the process: `python -m tests.deadly run`.

What a bug in a C library, or the kernel when memory is short, does to a worker, on cue.
"""

import os

from tests.builders import Message as WireMessage
from tests.builders import message
from worker.cli import main
from worker.messages import Message, Payload
from worker.registry import on
from worker.store.transaction import Transaction


class Detonated(Payload):
    """Nothing but its event."""


async def detonated(tx: Transaction, message: Message[Detonated]) -> None:
    os._exit(66)


def deadly(event_id: str) -> WireMessage:
    """Give a message of which every worker dies that this module started."""
    return message("event_detonated", {"event_id": event_id})


if __name__ == "__main__":
    on("event_detonated")(detonated)
    main()
