"""What `check` asks of the database, and of the disk below an SQLite file."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from worker.projections import load
from worker.rebuild import (
    reason_to_rebuild,
    require_known_kinds,
    require_same_columns,
    require_schemas,
)
from worker.settings import Settings
from worker.store.database import Database
from worker.store.engines import store_of
from worker.store.sqlite import inspection
from worker.store.sqlite.connection import Reader
from worker.store.sqlite.library import dotted, require_safe_commits
from worker.store.sqlite.lock import WriterLock
from worker.store.sqlite.migrations import SCHEMA_VERSION

WARN_FREE_BYTES = 1024**3
FAIL_FREE_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Line:
    """The result for one subject."""

    verdict: str
    """ok, warn or FAIL."""
    subject: str
    found: str
    fix: str | None = None


Looks = dict[str, Callable[[Settings], Awaitable[Line]]]
"""Subject -> what looks at it."""


def database_looks(settings: Settings) -> Looks:
    """Return what looks at the database that the settings name."""
    if isinstance(settings.database, Path):
        return {"database": _file, "disk": _disk, "sqlite": _sqlite}
    return {"database": _server}


async def _server(settings: Settings) -> Line:
    shown, store = settings.shown_database, store_of(settings.store)
    if not await store.exists():
        return _missing(shown)
    async with store.reader() as reader:
        reason = await _reason_to_rebuild(reader)
    if reason:
        return _to_be_rebuilt(shown, reason)
    return Line("ok", "database", f"{shown}, schema {settings.database_schema}")


async def _file(settings: Settings) -> Line:
    shown, path = settings.shown_database, Path(settings.shown_database)
    if not inspection.is_file(path):
        return _missing(shown)
    inspection.require_writable(path)
    async with Reader(path) as reader:
        if (version := await inspection.schema_version(reader)) < SCHEMA_VERSION:
            fix = "start the worker, which upgrades it."
            return Line("warn", "database", f"{path} has an older schema ({version}).", fix)
        await inspection.require_acked(reader, path)
        reason = await _reason_to_rebuild(reader)
    if reason:
        return _to_be_rebuilt(shown, reason)
    return Line("ok", "database", f"{path}, {_held(path)}")


async def _reason_to_rebuild(reader: Database) -> str | None:
    """Return why the rows must be rebuilt; raises for what a start would refuse."""
    registry = load()
    await require_schemas(reader, registry)
    await reader.require_log()
    await require_known_kinds(reader, registry)
    reason = reason_to_rebuild(await reader.noted_versions(), registry)
    if reason is None:
        await require_same_columns(reader, registry)
    return reason


def _missing(shown: str) -> Line:
    fix = "start the worker, which creates it."
    return Line("warn", "database", f"{shown} does not exist yet.", fix)


def _to_be_rebuilt(shown: str, reason: str) -> Line:
    fix = "start the worker, which rebuilds it first."
    return Line("warn", "database", f"{shown} must be rebuilt: {reason}.", fix)


def _held(path: Path) -> str:
    holder = WriterLock(path).holder()
    return f"in use by {holder}" if holder else "in use by no worker"


async def _disk(settings: Settings) -> Line:
    folder = inspection.existing_folder(Path(settings.shown_database))
    free = inspection.free_bytes(folder)
    found = f"{folder} has {free / 1024**3:,.1f} GiB free"
    if not inspection.can_write(folder):
        fix = "grant this user write access, or set WORKER_DATABASE to another folder."
        return Line("FAIL", "disk", f"This user cannot write to {folder}.", fix)
    if free < WARN_FREE_BYTES:
        word = "FAIL" if free < FAIL_FREE_BYTES else "warn"
        return Line(
            word, "disk", found, "free some space; on a full disk the worker holds its messages."
        )
    return Line("ok", "disk", found)


async def _sqlite(_: Settings) -> Line:
    require_safe_commits()
    return Line("ok", "sqlite", f"SQLite {dotted()}")
