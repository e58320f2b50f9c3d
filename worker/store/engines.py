"""Picks the store for a database, and makes private databases."""

from pathlib import Path

from worker.store.database import Writer
from worker.store.postgres.address import Address
from worker.store.sqlite.file import SCRATCH
from worker.store.sqlite.store import SqliteStore
from worker.store.sqlite.store import Writer as SqliteWriter
from worker.store.store import Store


def store_of(database: Path | Address) -> Store:
    """Return the store that keeps a database."""
    if isinstance(database, Address):
        raise NotImplementedError
    return SqliteStore(database)


def scratch() -> Writer:
    """Return a private database, which disappears when it is closed.

    It is an SQLite database in either store: the same statements make the same rows there.
    """
    return SqliteWriter(SCRATCH)
