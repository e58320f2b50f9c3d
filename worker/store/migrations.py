"""The versions of the worker's own tables: each script takes a file from one to the next."""

from importlib import resources

import aiosqlite

SCRIPTS = ("schema.sql", "schema_2.sql")
"""A new file gets all of them; each is one transaction and ends by noting its version."""
SCHEMA_VERSION = len(SCRIPTS)


def scripts_after(version: int) -> list[str]:
    """Return what brings a file of this version, 0 if it is new, up to the present one."""
    folder = resources.files("worker.store")
    return [folder.joinpath(script).read_text() for script in SCRIPTS[version:]]


async def migrate(connection: aiosqlite.Connection, version: int) -> None:
    """Bring a file of this version, 0 if it is new, up to the present one.

    Raises what SQLite raises; the scripts that had ended by then need not run again.
    """
    for script in scripts_after(version):
        await connection.executescript(script)
