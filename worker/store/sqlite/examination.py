"""Whether a file, its disk and the SQLite in use are as the worker needs them."""

from collections.abc import Awaitable
from pathlib import Path

from worker.store.findings import (
    DATABASE,
    Content,
    Finding,
    finding,
    missing,
    older_schema,
    to_be_rebuilt,
)
from worker.store.sqlite import inspection
from worker.store.sqlite.connection import Reader
from worker.store.sqlite.library import dotted, require_safe_commits
from worker.store.sqlite.lock import WriterLock
from worker.store.sqlite.migrations import SCHEMA_VERSION

WARN_FREE_BYTES = 1024**3
FAIL_FREE_BYTES = 64 * 1024**2


async def examine(path: Path, content: Content) -> list[Finding]:
    """Return what is found, and change nothing."""
    looks: dict[str, Awaitable[Finding]] = {
        DATABASE: _file(path, content),
        "disk": _disk(path),
        "sqlite": _sqlite(),
    }
    return [await finding(subject, look) for subject, look in looks.items()]


async def _file(path: Path, content: Content) -> Finding:
    shown = str(path)
    if not inspection.is_file(path):
        return missing(shown)
    inspection.require_writable(path)
    async with Reader(path) as reader:
        if (version := await inspection.schema_version(reader)) < SCHEMA_VERSION:
            return older_schema(shown, version)
        await inspection.require_acked(reader, path)
        reason = await content(reader)
    if reason:
        return to_be_rebuilt(shown, reason)
    return Finding("ok", DATABASE, f"{shown}, {_held(path)}")


def _held(path: Path) -> str:
    holder = WriterLock(path).holder()
    return f"in use by {holder}" if holder else "in use by no worker"


async def _disk(path: Path) -> Finding:
    folder = inspection.existing_folder(path)
    free = inspection.free_bytes(folder)
    found = f"{folder} has {free / 1024**3:,.1f} GiB free"
    if not inspection.can_write(folder):
        fix = "grant this user write access, or set WORKER_DATABASE to another folder."
        return Finding("FAIL", "disk", f"This user cannot write to {folder}.", fix)
    if free < WARN_FREE_BYTES:
        word = "FAIL" if free < FAIL_FREE_BYTES else "warn"
        return Finding(
            word, "disk", found, "free some space; on a full disk the worker holds its messages."
        )
    return Finding("ok", "disk", found)


async def _sqlite() -> Finding:
    require_safe_commits()
    return Finding("ok", "sqlite", f"SQLite {dotted()}")
