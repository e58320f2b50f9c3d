"""Picks the store for a database, and makes private databases."""

from pathlib import Path

from worker.errors import StoreUnusable
from worker.store.database import Writer
from worker.store.postgres.address import Address
from worker.store.sqlite.file import SCRATCH
from worker.store.sqlite.store import SqliteStore
from worker.store.sqlite.store import Writer as SqliteWriter
from worker.store.store import Store


def store_of(database: Path | Address) -> Store:
    """Return the store that keeps a database.

    Raises `StoreUnusable` for a server if its driver is not installed.
    """
    if isinstance(database, Path):
        return SqliteStore(database)
    try:
        # Only who uses a server needs its driver.
        from worker.store.postgres.store import PostgresStore  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise StoreUnusable(
            "The driver for PostgreSQL is not installed (asyncpg).",
            "install the worker with it: pip install 'projection-worker[postgres]', or "
            "'.[postgres]' in a clone.",
        ) from error
    return PostgresStore(database)


def scratch() -> Writer:
    """Return a private database, which disappears when it is closed.

    It is an SQLite database in either store: the same statements make the same rows there.
    """
    return SqliteWriter(SCRATCH)
