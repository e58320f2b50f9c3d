"""One writer per database, ensured by a lock that ends with its process, however that ends.

The lock is on a separate file beside the database, because closing any descriptor of the database
itself would drop SQLite's own locks on it (sqlite.org/howtocorrupt.html, section 2.2).
"""

import fcntl
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from worker.errors import StoreUnusable, WriterLocked
from worker.messages import now
from worker.store.sqlite.file import PRIVATE_FILE, PRIVATE_FOLDER, Place, is_gone, look_at, place

NOTE_BYTES = 4096


class Progress(NamedTuple):
    """How far a database had come when the lock's holder last committed."""

    file_id: str
    commits: int
    """Transactions that appended to the log; the messages of all of them may have been acked."""
    checkpointed: int | None = None
    """How many of them are safe in the database itself, without its WAL; None if not known."""
    is_overwritten: bool = False
    """Whether somebody overwrote the file while it was open: an operator must look at it first."""


class WriterLock:
    """The right to be the one process that writes a database."""

    def __init__(self, database: Path) -> None:
        """Name the database; nothing is locked yet."""
        self.database = database
        self.path = database.with_name(database.name + ".lock")
        self.noted: Progress | None = None
        """What the last holder noted, once the lock is taken; None if it noted nothing."""
        self._descriptor: int | None = None
        self._place: Place | None = None
        self._owner: dict[str, object] = {}

    def acquire(self) -> None:
        """Take the lock, or raise `WriterLocked`, which names the process that holds it.

        Raises `StoreUnusable` if the lock file cannot be created.
        """
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.read(descriptor, NOTE_BYTES))
            os.close(descriptor)
            raise WriterLocked(
                f"The database is being written by another process (path {self.database}, "
                f"{holder}).",
                "stop it, or set WORKER_DATABASE to another file.",
            ) from None
        self._descriptor = descriptor
        self._place = place(os.fstat(descriptor))
        self._owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
        self.noted = _progress(os.pread(descriptor, NOTE_BYTES, 0))
        self._write()

    def peek(self) -> None:
        """Read the holder's note without taking the lock; ignore a file that cannot be read."""
        with suppress(OSError):
            self.noted = _progress(self.path.read_bytes())

    def note(self, progress: Progress) -> None:
        """Note the database's progress for the next holder."""
        self.noted = progress
        self._write()

    def require_held(self) -> None:
        """Raise `StoreUnusable` if the lock file was removed: others would lock a new one."""
        if place(look_at(self.path)) != self._place:
            raise is_gone(self.path)

    def _write(self) -> None:
        note = self._owner if self.noted is None else {**self._owner, **self.noted._asdict()}
        # Always the same length, so that a note never mixes with an older one, and always fits on a
        # full disk.
        line = json.dumps(note).encode().ljust(NOTE_BYTES - 1) + b"\n"
        # The lock counts, not the note: a full disk must not make the worker give up.
        with suppress(OSError):
            if self._descriptor is not None:
                os.pwrite(self._descriptor, line, 0)

    def holder(self) -> str | None:
        """Return who holds the lock, or None; neither takes the lock nor writes anything.

        Raises `StoreUnusable` if this user may not read the lock file.
        """
        if not self.path.exists():
            return None
        try:
            with self.path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return _holder(file.read(NOTE_BYTES))
        except OSError as error:
            raise StoreUnusable(
                f"The lock file cannot be read (path {self.path}: {error.strerror}).",
                "run this command as the user that runs the worker.",
            ) from error
        return None

    def _open(self) -> int:
        # The file is never unlinked: a lock on a file that has left its directory locks nothing.
        try:
            self.path.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        except OSError as error:
            raise StoreUnusable(
                f"The lock file cannot be created (path {self.path}: {error.strerror}).",
                "make sure that the directory exists and that this user may write to it.",
            ) from error

    def release(self) -> None:
        """Let another process take the lock; releasing it twice is harmless."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        """Acquire."""
        self.acquire()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release."""
        self.release()


def _progress(note: bytes) -> Progress | None:
    with suppress(ValueError, KeyError, TypeError):
        noted = json.loads(note)
        return Progress(**{name: noted[name] for name in Progress._fields})
    return None


def _holder(note: bytes) -> str:
    # The note is written after the lock is taken, so it may be missing or be the previous holder's.
    with suppress(ValueError, KeyError, TypeError):
        owner = json.loads(note)
        return f"pid {owner['pid']} on {owner['host']} since {owner['since']}"
    return "which has not identified itself yet"
