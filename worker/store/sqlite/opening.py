"""How a writer's connection is set up: a checklist, each pragma with its reason."""

import sqlite3
from pathlib import Path

import aiosqlite

from worker.store.sqlite.checks import identity, require_ours, require_sound
from worker.store.sqlite.driver import BEGIN, Preceded
from worker.store.sqlite.migrations import migrate
from worker.store.sqlite.watch import WAL_BYTES_KEPT
from worker.store.statements import Group

# Short, because a shutdown cannot interrupt a wait inside SQLite. The worker waits by trying again.
BUSY_MILLISECONDS = 1_000
CACHE_KIBIBYTES = 8 * 1024
# When a commit brings the WAL to this many pages, it also copies them into the database. A large
# number makes that rare, and copies a page once that was written many times. A small number makes
# it short.
CHECKPOINT_PAGES, CHECKPOINT_PAGES_IN_BULK = 1_000, 16_000

PRAGMAS = (
    # Readers can read while the worker writes, and a commit costs one fsync instead of two or more.
    "PRAGMA journal_mode = WAL",
    # In WAL mode, NORMAL may lose the last commits in a power cut, although they have been acked.
    "PRAGMA synchronous = FULL",
    f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}",
    f"PRAGMA cache_size = -{CACHE_KIBIBYTES}",
    f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}",
    # The WAL grows while a reader keeps its snapshot; return the space when the reader has ended.
    f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}",
    # A read-only root file system may have no place for temporary files.
    "PRAGMA temp_store = MEMORY",
    # A schema that somebody changed may not call functions that have side effects
    # (sqlite.org/security.html).
    "PRAGMA trusted_schema = OFF",
)


async def prepare(connection: aiosqlite.Connection, path: Path | str, *, may_be_new: bool) -> None:
    """Check the file, upgrade its schema, and set the connection up for writing.

    Raises `StoreUnusable` for a file that is not ours, has a newer schema or is damaged, and
    SQLite's own errors.
    """
    connection.row_factory = sqlite3.Row
    application_id, version, tables = await identity(connection)
    is_new = may_be_new and version == 0 and tables == 0
    if not is_new:
        require_ours(path, application_id, version)
    for pragma in PRAGMAS:
        await connection.execute(pragma)
    if not is_new:
        await require_sound(connection, path)
    await migrate(connection, version)
    # If the last process was killed, or its fsync failed, the WAL that SQLite finds may exist only
    # in the page cache, and a later fsync may not write it to the disk
    # (wiki.postgresql.org/wiki/Fsync_Errors). A batch of duplicates writes nothing, so it would be
    # acked although the messages are not safe. A checkpoint writes and syncs them again. Readers do
    # not prevent that: whatever entered the WAL while one was connected was synced before SQLite
    # showed it to anyone (wal.c, sqlite3WalFrames).
    await connection.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")
    # From here on, the worker notices commits of other connections.
    await connection.execute_fetchall("ROLLBACK", Preceded([Group(BEGIN, None)], (), {}, None))
