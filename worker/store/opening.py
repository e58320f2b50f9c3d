"""How a writer's connection is set up: a checklist, each pragma with its reason."""

from pathlib import Path

import aiosqlite

from worker.store.checks import identity, require_ours, require_sound
from worker.store.driver import BEGIN, Preceded
from worker.store.migrations import migrate
from worker.store.statements import Group
from worker.store.transaction import Row
from worker.store.watch import WAL_BYTES_KEPT

# Short, because a wait inside SQLite can't be interrupted by a shutdown; the worker waits by
# trying again.
BUSY_MILLISECONDS = 1_000
CACHE_KIBIBYTES = 8 * 1024
# The commit that fills so many pages of the WAL also writes them into the database. Many make that
# rare, and what was written again and again is then written once; few make it short.
CHECKPOINT_PAGES, CHECKPOINT_PAGES_IN_BULK = 1_000, 16_000

PRAGMAS = (
    # Readers go on while the worker writes, and a commit costs one fsync instead of two or more.
    "PRAGMA journal_mode = WAL",
    # In WAL mode NORMAL may lose the last commits at a power cut; their messages are acked.
    "PRAGMA synchronous = FULL",
    f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}",
    f"PRAGMA cache_size = -{CACHE_KIBIBYTES}",
    f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}",
    # A long reader lets the WAL grow; give the disk back once it has gone.
    f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}",
    # A read-only root file system may have no place for temporary files.
    "PRAGMA temp_store = MEMORY",
    # Nobody puts functions of his own into our schema (sqlite.org/security.html).
    "PRAGMA trusted_schema = OFF",
)


async def prepare(connection: aiosqlite.Connection, path: Path | str, *, may_be_new: bool) -> None:
    """Check the file, bring its schema up to date, and set the connection up for writing.

    Raises `StoreUnusable` for a file that is not ours, of a newer schema or damaged, and what
    SQLite raises.
    """
    connection.row_factory = Row
    application_id, version, tables = await identity(connection)
    is_new = may_be_new and version == 0 and tables == 0
    if not is_new:
        require_ours(path, application_id, version)
    for pragma in PRAGMAS:
        await connection.execute(pragma)
    if not is_new:
        await require_sound(connection, path)
    await migrate(connection, version)
    # What SQLite finds in the WAL of a process that was killed, or whose fsync failed, may be in
    # the page cache alone, and a later fsync need not bring it to the disk
    # (wiki.postgresql.org/wiki/Fsync_Errors). A batch of duplicates writes nothing, so it would be
    # acked on the strength of that. A checkpoint writes it again and syncs. Readers do not stand
    # in its way: what came into the WAL while one was connected was synced before SQLite showed it
    # to anyone (wal.c, sqlite3WalFrames).
    await connection.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")
    # From here on, a commit of another connection is noticed.
    await connection.execute_fetchall("ROLLBACK", Preceded([Group(BEGIN, None)], (), {}, None))
