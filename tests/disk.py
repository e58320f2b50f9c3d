"""A small disk for one worker, which can be filled and emptied again."""

import shutil
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

import pytest

from tests.processes import WorkerProcess


@cache
def cannot_mount(*options: str) -> str | None:
    """Return why no disk can be mounted here, or None if one can.

    The options are those of unshare, and make the caller root unless others are given.
    """
    if not shutil.which("unshare"):
        return "unshare is not installed"
    program = ["unshare", *(options or ("-rm",)), "mount", "-t", "tmpfs", "none", "/mnt"]
    tried = subprocess.run(program, capture_output=True, text=True, check=False)
    return f"nothing can be mounted: {tried.stderr.strip()}" if tried.returncode else None


def require_held_disk() -> None:
    """Skip the test if no `HeldDisk` can be mounted here."""
    if reason := cannot_mount("--mount"):
        pytest.skip(reason)


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


class HeldDisk:
    """A small disk that stays while processes on it come and go; only root can mount it.

    It is for a server, which refuses to run as the root that `Disk` would make it. `with` mounts
    it, and leaving the block removes it.
    """

    def __init__(self, folder: Path, options: str) -> None:
        """Choose the folder where it is mounted, which exists, and the mount options."""
        self._folder = folder
        self._options = options
        self._holder: subprocess.Popen[bytes] | None = None

    @property
    def inside(self) -> tuple[str, ...]:
        """What stands before a command that sees the disk."""
        assert self._holder is not None
        # With its root, too, which is not that of the machine where the tests run in a chroot.
        return ("nsenter", "--target", str(self._holder.pid), "--mount", "--root")

    @property
    def seen(self) -> Path:
        """The path of the disk's folder as seen from outside."""
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root{self._folder}")

    def __enter__(self) -> Self:
        mount = 'mount -t tmpfs -o "$1" none "$0" && echo mounted && exec cat'
        program = ("unshare", "--mount", "sh", "-c", mount, str(self._folder), self._options)
        # `cat` ends with its input, and so with this process.
        self._holder = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"mounted\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._holder is not None
        self._holder.communicate()


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(b"x" * 4096)


StartOnDisk = Callable[[Disk], Awaitable[WorkerProcess]]
