"""The resources that a worker holds, which many lost connections must not increase."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.fleet import Fleet
from tests.health import read
from tests.processes import WorkerProcess
from tests.proxy import Proxy

# Allows for a connection that is closing, and for a thread of a pool that was not needed before.
MORE_DESCRIPTORS = 3
MORE_THREADS = 2
# An allocator keeps this much; a leak of a session's buffers at each cut is more.
MORE_KIBIBYTES = 8 * 1024


@dataclass(frozen=True, slots=True)
class Footprint:
    """One measurement of a process."""

    descriptors: int
    threads: int
    kibibytes: int
    """Resident."""
    peak_kibibytes: int
    """The peak of resident memory so far."""

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        """Ask the kernel."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        return cls(
            descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            threads=int(status["Threads"]),
            kibibytes=int(status["VmRSS"].split()[0]),
            peak_kibibytes=int(status["VmHWM"].split()[0]),
        )

    def growth(self, before: "Footprint") -> str:
        """Return what has grown since `before`, or an empty text."""
        grown = (
            self.descriptors > before.descriptors + MORE_DESCRIPTORS
            or self.threads > before.threads + MORE_THREADS
            or self.kibibytes > before.kibibytes + MORE_KIBIBYTES
        )
        return f"{before} became {self}" if grown else ""


async def growth_after_cuts(worker: WorkerProcess, proxy: Proxy, cuts: int) -> str:
    """Cut its connections this often, and return what it holds more than before."""
    before = None
    for number in range(1, cuts + 2):
        # The first cut is a warm-up: what a loss loads and allocates stays.
        await worker.wait_for_log("connected", number)
        if number == 2:
            before = Footprint.of(worker.pid)
        proxy.cut()
    await worker.wait_for_log("connected", cuts + 2)
    assert before is not None
    return Footprint.of(worker.pid).growth(before)


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


async def metrics(port: int) -> bytes:
    """Return a worker's metrics, or nothing if it serves none."""

    def ask() -> bytes:
        with suppress(OSError):
            return read(f"http://127.0.0.1:{port}/metrics").encode()
        return b""

    return await asyncio.to_thread(ask)


def secrets_in(fleet: Fleet, folder: Path, secrets: Sequence[str]) -> list[str]:
    """Return the files that contain a secret, among the workers' output and files."""
    files = [fleet.output, folder / "metrics", *folder.glob("projection.db*")]
    texts = {file.name: file.read_bytes() for file in files}
    return [name for name, text in texts.items() if any(each.encode() in text for each in secrets)]
