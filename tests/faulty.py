"""A worker with a bug in a background task: `python -m tests.faulty run`."""

from aio_pika.abc import AbstractConnection

from worker import service
from worker.broker import verification
from worker.broker.topology import Topology
from worker.broker.verification import Verification
from worker.cli import main


class Bug(Exception):
    """An exception that the worker does not know."""


async def look(topology: Topology, connection: AbstractConnection, **_: object) -> Verification:
    """Succeed while a session opens, and fail at the first verification after it."""
    looks.append(1)
    if len(looks) > 1:
        raise Bug("a bug in a task beside the loop")
    return Verification(0, 0)


looks: list[int] = []

if __name__ == "__main__":
    service.VERIFY_EVERY_SECONDS = 0
    verification.verify = look
    main()
