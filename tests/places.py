"""Where a test's database is: a file, or a schema on a PostgreSQL node; and reads of either.

Nothing here runs the worker's code but to say which store keeps the place.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import asyncpg

from worker.store.database import Database, Writer
from worker.store.engines import store_of
from worker.store.postgres.address import Address
from worker.store.sqlite.store import Writer as SqliteWriter

T = TypeVar("T")
Place = Path | Address


def writer_at(place: Place) -> Writer:
    """Return a writer, without the lock of a file."""
    if isinstance(place, Path):
        return SqliteWriter(place)
    store = store_of(place)
    return store.writer(store.lock())


def reader_at(place: Place) -> Database:
    return store_of(place).reader()


def beside(place: Place, name: str) -> Place:
    """Return another place, in the same folder or on the same node."""
    if isinstance(place, Path):
        return place.with_name(f"{name}.db")
    return replace(place, schema=f"{place.schema}_{name}")


def rows(place: Place, sql: str) -> list[tuple[Any, ...]]:
    """Query the database."""
    if isinstance(place, Path):
        with closing(sqlite3.connect(place)) as connection:
            return connection.execute(sql).fetchall()

    async def fetched(connection: asyncpg.Connection) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await connection.fetch(sql)]

    return _in_postgres(place, fetched)


def change(place: Place, sql: str) -> None:
    """Change the database behind the worker's back."""
    if isinstance(place, Path):
        with closing(sqlite3.connect(place, isolation_level=None)) as connection:
            connection.execute(sql)
        return

    async def changed(connection: asyncpg.Connection) -> None:
        await connection.execute(sql)

    _in_postgres(place, changed)


def _in_postgres(place: Address, work: Callable[[asyncpg.Connection], Coroutine[Any, Any, T]]) -> T:
    """Work in the database from a thread, because the test's own event loop may be running."""

    async def working() -> T:
        connection = await asyncpg.connect(
            place.url, server_settings={"search_path": f'"{place.schema}"'}
        )
        try:
            return await work(connection)
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(working())).result()
