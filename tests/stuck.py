"""A worker that never finishes closing a connection: `python -m tests.stuck run`.

It stands for whatever may hang between two sessions.
"""

import asyncio

from worker.broker import connection
from worker.cli import main
from worker.telemetry import health


async def never(_: object) -> None:
    await asyncio.Event().wait()


if __name__ == "__main__":
    health.STEP_SECONDS = 1
    setattr(connection, "closing", never)  # noqa: B010 - mypy lets nobody assign to a function
    main()
