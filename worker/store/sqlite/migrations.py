"""The schema versions of the worker's own tables: each script upgrades a file to the next one."""

from importlib import resources

import aiosqlite

SCRIPTS = ("schema.sql", "schema_2.sql")
"""A new file runs all of them. Each is one transaction and ends by setting its version."""
SCHEMA_VERSION = len(SCRIPTS)


def scripts_after(version: int) -> list[str]:
    """Return the scripts that upgrade a file from this version (0 if it is new)."""
    folder = resources.files("worker.store.sqlite")
    return [folder.joinpath(script).read_text() for script in SCRIPTS[version:]]


async def migrate(connection: aiosqlite.Connection, version: int) -> None:
    """Upgrade a file from this version (0 if it is new) to the current one.

    Raises SQLite's errors; scripts that have already ended need not run again.
    """
    for script in scripts_after(version):
        await connection.executescript(script)
