"""What a worker holds of its machine: it must be the same after many lost connections."""

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.fleet import Fleet
from tests.health import read
from tests.processes import WorkerProcess
from tests.proxy import Proxy

# A connection that is just being closed, and a thread of a pool that was not needed before.
MORE_DESCRIPTORS = 3
MORE_THREADS = 2
# What an allocator keeps; a leak of a session's buffers in each of the cuts is more.
MORE_KIBIBYTES = 8 * 1024


@dataclass(frozen=True, slots=True)
class Footprint:
    """One look at a process."""

    descriptors: int
    threads: int
    kibibytes: int
    """Resident."""

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        """Ask the kernel."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        return cls(
            descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            threads=int(status["Threads"]),
            kibibytes=int(status["VmRSS"].split()[0]),
        )

    def growth(self, before: "Footprint") -> str:
        """Say what has grown since; nothing if that is as much as it was."""
        grown = (
            self.descriptors > before.descriptors + MORE_DESCRIPTORS
            or self.threads > before.threads + MORE_THREADS
            or self.kibibytes > before.kibibytes + MORE_KIBIBYTES
        )
        return f"{before} became {self}" if grown else ""


async def growth_after_cuts(worker: WorkerProcess, proxy: Proxy, cuts: int) -> str:
    """Cut its connections so often, and say what it holds more than before."""
    before = None
    for number in range(1, cuts + 2):
        # One to be warm: what is loaded and allocated at the first loss stays.
        await worker.wait_for_log("connected", number)
        if number == 2:
            before = Footprint.of(worker.pid)
        proxy.cut()
    await worker.wait_for_log("connected", cuts + 2)
    assert before is not None
    return Footprint.of(worker.pid).growth(before)


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


async def metrics(port: int) -> bytes:
    """Return a worker's metrics, or nothing if it serves none."""

    def ask() -> bytes:
        with suppress(OSError):
            return read(f"http://127.0.0.1:{port}/metrics").encode()
        return b""

    return await asyncio.to_thread(ask)


def words_in(fleet: Fleet, database: Path, secret: str) -> list[str]:
    """Name the files in which a secret stands: what workers said, and what they wrote."""
    folder = database.parent
    files = [fleet.output, folder / "metrics", *folder.glob(f"{database.name}*")]
    return [file.name for file in files if secret.encode() in file.read_bytes()]
