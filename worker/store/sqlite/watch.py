"""Notices when the files of an open database are no longer the ones that were opened.

SQLite keeps its files open and does not look at their names again. If somebody removes its WAL, or
copies a backup over the database, SQLite does not notice, and everything acked from then on is
lost. So every transaction checks the files before it begins and after it ends, with four stat(2)
calls each time. The lock file notes what was acked, so that the next start notices a loss, too.

Nothing here opens a file except through SQLite, because closing a descriptor of the database would
drop SQLite's locks (sqlite.org/howtocorrupt.html, section 2.2).
"""

import asyncio
import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

from worker.errors import StoreUnavailable, StoreUnusable
from worker.store.sqlite.file import RESTORE, Place, is_gone, look_at, place, require_one_name
from worker.store.sqlite.lock import Progress, WriterLock

# A WAL that has grown beyond this is cut back to it (PRAGMA journal_size_limit).
WAL_BYTES_KEPT = 64 * 1024 * 1024


class Checkpointed(NamedTuple):
    """What the database holds without its WAL: the state of the last checkpoint."""

    file_id: str
    commits: int


class _Found(NamedTuple):
    database: tuple[int, int]
    """Its size in bytes, and when it was last written."""
    wal_bytes: int


class FileWatch:
    """Notices when somebody removes, replaces or overwrites a file that the writer has open."""

    def __init__(self, database: Path, lock: WriterLock | None) -> None:
        """Watch the files of this database; note the progress in the lock, if there is one."""
        self._database = database
        self._wal = database.with_name(f"{database.name}-wal")
        self._shared_memory = database.with_name(f"{database.name}-shm")
        self._lock = lock
        self._places: dict[Path, Place] = {}
        self._found = _Found((0, 0), 0)
        self._progress = Progress("", 0)

    async def opening(self) -> None:
        """Check the files before SQLite opens the database and its WAL.

        Raises `StoreUnusable` for a database that has several names, or is older than it was when
        its last worker acked.
        """
        require_one_name(self._database)
        self._places = {self._database: place(look_at(self._database))}
        noted = self._noted()
        if noted is None:
            return
        found = await asyncio.to_thread(checkpointed, self._database)
        if isinstance(found, Checkpointed) and found.file_id != noted.file_id:
            return
        if noted.is_overwritten:
            raise self._overwritten()
        # If it cannot be read, a power cut may have torn a page, which the WAL repairs.
        if isinstance(found, Checkpointed) and noted.checkpointed is not None:
            self._require_commits(found.commits, noted.checkpointed)

    async def opened(self, file_id: str, commits: int) -> None:
        """Begin to watch the files that SQLite has opened.

        Raises `StoreUnusable` if the database lacks commits whose messages were acked.
        """
        self.require_acked(file_id, commits)
        for companion in (self._wal, self._shared_memory):
            self._places[companion] = place(look_at(companion))
        self._progress = Progress(file_id, commits)
        await self.ended()

    def require_acked(self, file_id: str, commits: int) -> None:
        """Raise `StoreUnusable` if the lock file notes more commits than this database holds."""
        noted = self._noted()
        if noted is None or noted.file_id != file_id:
            return
        if noted.is_overwritten:
            raise self._overwritten()
        self._require_commits(commits, noted.commits)

    def require_database(self) -> None:
        """Raise `StoreUnusable` if the database file is no longer the one that was opened."""
        self._require_place(self._database)

    async def beginning(self) -> None:
        """Check the files before a transaction begins.

        This process has written nothing since the last one ended. Raises `StoreUnusable` if a file
        is gone or was overwritten; a checkpoint by another process is harmless.
        """
        found = self._seen()
        if found == self._found:
            return
        # What is missing from the WAL must be in the database.
        is_cut = found.wal_bytes < min(self._found.wal_bytes, WAL_BYTES_KEPT)
        if not await self._require_current(self._progress.commits if is_cut else 0):
            raise StoreUnavailable(
                f"The database was written by another process and is incomplete (path "
                f"{self._database}).",
                "if it is being copied, stop the worker first; if not, start the worker again.",
            )
        self._found = found

    async def ended(self) -> None:
        """Check the files after a transaction has ended, by a commit or by a rollback.

        A change is usually a checkpoint of ours. A checkpoint that failed halfway leaves a database
        that is incomplete without its WAL. Raises `StoreUnusable` as `beginning` does.
        """
        found = self._seen()
        if found.database != self._found.database:
            await self._require_current(0)
        self._found = found

    async def committed(self, commits: int) -> None:
        """Check the files as `ended` does, and note what may be acked now."""
        before = self._progress
        self._progress = before._replace(commits=commits)
        await self.ended()
        if self._lock is not None and self._progress != before:
            self._lock.note(self._progress)

    async def _require_current(self, least_commits: int) -> bool:
        """Return whether the database can be read without its WAL.

        Raises `StoreUnusable` if it is an older one, and notes that for the next start.
        """
        seen = await asyncio.to_thread(checkpointed, self._database)
        if not isinstance(seen, Checkpointed):
            return False
        known = self._progress
        least = max(least_commits, known.checkpointed or 0)
        if seen.file_id == known.file_id and seen.commits >= least:
            # SQLite syncs the database only when a checkpoint has copied the whole WAL (wal.c,
            # walCheckpoint). After a checkpoint that a reader kept from finishing, a power cut may
            # lose what it copied.
            if seen.commits == known.commits:
                self._progress = known._replace(checkpointed=seen.commits)
            return True
        if self._lock is not None:
            self._lock.note(known._replace(is_overwritten=True))
        raise self._overwritten()

    def _seen(self) -> _Found:
        if self._lock is not None:
            self._lock.require_held()
        self._require_place(self._shared_memory)
        wal, database = self._require_place(self._wal), self._require_place(self._database)
        return _Found((database.st_size, database.st_mtime_ns), wal.st_size)

    def _require_place(self, path: Path) -> os.stat_result:
        found = look_at(path)
        if place(found) != self._places[path]:
            raise is_gone(path)
        return found

    def _noted(self) -> Progress | None:
        return None if self._lock is None else self._lock.noted

    def _require_commits(self, found: int, acked: int) -> None:
        if found < acked:
            raise StoreUnusable(
                f"The database has lost what was acked (path {self._database}, {found:,} of "
                f"{acked:,} commits): its -wal was removed or damaged, or it is an older copy.",
                self._way_out(),
            )

    def _overwritten(self) -> StoreUnusable:
        return StoreUnusable(
            f"The database or its WAL was overwritten while it was open (path {self._database}). "
            "It may now contain a mixture of both.",
            self._way_out(),
        )

    def _way_out(self) -> str:
        removal = f", remove {self._lock.path}" if self._lock is not None else ""
        return (
            f"put the right files back; or restore a backup{removal}, start the worker, and ask "
            f"the publishers to publish everything newer than the backup again. {RESTORE}"
        )


def checkpointed(database: Path) -> Checkpointed | sqlite3.Error:
    """Read the database without its WAL, or return the error that prevented it."""
    try:
        # Takes no lock and reads no WAL (sqlite.org/uri.html, "immutable").
        connection = sqlite3.connect(
            f"{database.absolute().as_uri()}?mode=ro&immutable=1", uri=True
        )
        try:
            # A checkpoint skips pages that a reader still needs, so the file may be shorter than
            # its first page says. SQLite treats that as damage, but not in this mode (btree.c,
            # lockBtree).
            connection.execute("PRAGMA writable_schema = ON")
            ((file_id, commits),) = connection.execute("SELECT id, commits FROM file").fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return error
    return Checkpointed(file_id, commits)
