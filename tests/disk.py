"""A small disk of a worker's own, which can be filled, and gives way again."""

import shutil
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from tests.processes import WorkerProcess


@cache
def cannot_mount() -> str | None:
    """Say why no disk of our own can be mounted here, None if it can."""
    if not shutil.which("unshare"):
        return "unshare is not installed"
    program = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    tried = subprocess.run(program, capture_output=True, text=True, check=False)
    return f"nothing can be mounted: {tried.stderr.strip()}" if tried.returncode else None


class Disk:
    """Where a worker's database is on a small disk that no other process sees."""

    def __init__(self, folder: Path, options: str) -> None:
        """Name where it is mounted, and how."""
        self.folder = folder
        self.database = folder / "projection.db"
        mount = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
        folder.mkdir()
        self.inside = ("unshare", "-rm", "sh", "-c", mount, str(folder))

    def seen_by(self, worker: WorkerProcess) -> Path:
        """Name the disk's folder as it is reached from outside."""
        return Path(f"/proc/{worker.pid}/root{self.folder}")


def fill(file: Path) -> None:
    """Write until nothing more fits."""
    with file.open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(b"x" * 4096)


StartOnDisk = Callable[[Disk], Awaitable[WorkerProcess]]
