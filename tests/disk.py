"""A small disk for one worker, which can be filled and emptied again."""

import shutil
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from tests.processes import WorkerProcess


@cache
def cannot_mount() -> str | None:
    """Return why no disk can be mounted here, or None if one can."""
    if not shutil.which("unshare"):
        return "unshare is not installed"
    program = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    tried = subprocess.run(program, capture_output=True, text=True, check=False)
    return f"nothing can be mounted: {tried.stderr.strip()}" if tried.returncode else None


class Disk:
    """Places a worker's database on a small disk that no other process sees."""

    def __init__(self, folder: Path, options: str) -> None:
        """Choose the folder where it is mounted, and the mount options."""
        self.folder = folder
        self.database = folder / "projection.db"
        mount = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
        folder.mkdir()
        self.inside = ("unshare", "-rm", "sh", "-c", mount, str(folder))

    def seen_by(self, worker: WorkerProcess) -> Path:
        """Return the path of the disk's folder as seen from outside."""
        return Path(f"/proc/{worker.pid}/root{self.folder}")


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(b"x" * 4096)


StartOnDisk = Callable[[Disk], Awaitable[WorkerProcess]]
