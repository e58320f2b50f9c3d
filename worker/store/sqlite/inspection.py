"""Queries about the database and the disk that change neither."""

import os
import shutil
from pathlib import Path

from worker.errors import StoreUnusable
from worker.store.database import Database
from worker.store.sqlite.connection import PROGRESS, Reader
from worker.store.sqlite.file import COMPANIONS, require_one_name
from worker.store.sqlite.lock import WriterLock
from worker.store.sqlite.watch import FileWatch


async def schema_version(source: Database) -> int:
    """Return the version of the worker's own tables in a file."""
    ((version,),) = await source.fetch_all("PRAGMA user_version")
    return int(version)


async def require_acked(source: Database, database: Path) -> None:
    """Raise `StoreUnusable` if the file lacks what its lock says has been acked."""
    lock = WriterLock(database)
    # Read the note before the database, which may be ahead of it but never behind.
    lock.peek()
    ((file_id, commits),) = await source.fetch_all(PROGRESS)
    FileWatch(database, lock).require_acked(file_id, commits)


def is_file(database: Path) -> bool:
    """Return whether the database exists."""
    return database.is_file()


def require_writable(database: Path) -> None:
    """Raise `StoreUnusable` for a file that a worker could not or would not write."""
    require_one_name(database)
    for path in (database, *(Path(f"{database}{suffix}") for suffix in COMPANIONS)):
        if path.exists() and not (path.is_file() and os.access(path, os.R_OK | os.W_OK)):
            raise StoreUnusable(
                f"A file of the database cannot be written by this user (path {path}).",
                "check as the user that runs the worker, or allow this user to write the file.",
            )


async def file_id(database: Path) -> str | None:
    """Return the file's id; None if the file does not exist or has no id yet.

    Raises `StoreUnusable` if it is not ours.
    """
    if not is_file(database):
        return None
    async with Reader(database) as reader:
        # A file with the first schema gets an id when a worker opens it.
        has_id = await reader.fetch_all("SELECT 1 FROM sqlite_schema WHERE name = 'file'")
        return await reader.id() if has_id else None


def existing_folder(database: Path) -> Path:
    """Return the database's folder, or the nearest one above it that exists."""
    folder = database.absolute().parent
    while not folder.exists():
        folder = folder.parent
    return folder


def can_write(folder: Path) -> bool:
    """Return whether this user may create files in a folder."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def free_bytes(folder: Path) -> int:
    """Return the free space in bytes for this user."""
    return shutil.disk_usage(folder).free


def wal_bytes(database: Path) -> int:
    """Return the size of the database's WAL in bytes; 0 if there is none."""
    try:
        return database.with_name(database.name + "-wal").stat().st_size
    except OSError:
        return 0
