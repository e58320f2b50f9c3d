"""One batch in a separate process, as often as needed, so that each can be killed or made to fail.

    python -m tests.crash.one_batch

Reads the path of a database and forks a child that projects `BATCH` into it. A fork takes
milliseconds, while a new process would import for half a second. The child prints a line when it is
about to open the file and when it has, waits for a line each time, and prints `held` or `done` for
each attempt.
"""

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any

from tests.builders import completed, planned, reverted, started
from tests.unit.projecting import arrivals, projecting, shipped
from worker.errors import StoreUnavailable


def at(sequence: int) -> dict[str, Any]:
    """Return a position in a stream that is the same in every process."""
    return {"id": f"m-{sequence}", "sequence": sequence, "occurred_at": "2026-04-27T10:00:00Z"}


BEFORE = [planned("e-1", **at(1)), started("e-1", **at(5))]
BATCH = [
    planned("e-2", **at(1)),
    completed("e-2", **at(2)),
    started("e-1", **at(5)),  # A duplicate.
    reverted("e-1", "expired", **at(3)),  # A late one.
    planned("e-3", **at(1), payload={"props": {"long": "x" * 9_000}}),
]
TRIES = 3


def say(word: object) -> None:
    """Write a line at once, past any buffer that a fork would copy."""
    os.write(1, f"{word}\n".encode())


def hear() -> str:
    """Read one line, and nothing that is meant for another process."""
    heard = b""
    while not heard.endswith(b"\n"):
        if not (byte := os.read(0, 1)):
            sys.exit()
        heard += byte
    return heard.decode().strip()


async def project(path: Path) -> None:
    """Open the file and project the batch, trying again as the service does."""
    say(os.getpid())
    hear()
    async with projecting(path) as projector:
        # aiosqlite's, in which SQLite runs.
        (thread,) = [t for t in threading.enumerate() if "_connection_worker_thread" in t.name]
        say(thread.native_id)
        hear()
        for _ in range(TRIES):
            try:
                await projector.project(arrivals(BATCH))
            except StoreUnavailable:
                say("held")
            else:
                say("done")
                return


def main() -> None:
    """Fork a child for each path, and report how it ended."""
    # Loaded here so that no child has to: strace stops each call of a child.
    shipped()
    while True:
        path = Path(hear())
        if not (child := os.fork()):
            try:
                asyncio.run(project(path))
            except StoreUnavailable:
                say("not opened")
            os._exit(0)
        say(f"ended {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


if __name__ == "__main__":
    main()
