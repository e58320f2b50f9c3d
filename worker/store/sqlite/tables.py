"""The projections' tables in a file: creating them, and replacing them.

Drops only what a projection created and the log can restore.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from itertools import chain
from pathlib import Path

from worker.errors import StoreUnusable
from worker.store.database import Database
from worker.store.failures import Refused
from worker.store.sqlite.connection import OBJECTS, FileWriter
from worker.store.sqlite.schemas import COPY
from worker.store.tables import Schema, quoted
from worker.store.transaction import StoreTransaction

# The spelling in which SQLite stores the statement (build.c, sqlite3CreateIndex).
_MAKES_INDEX = re.compile(r"CREATE( UNIQUE)? INDEX")
NOTE = "INSERT INTO projections (table_name, version) VALUES (?, ?)"
TRIGGERS = """
    SELECT name, tbl_name FROM main.sqlite_schema
    WHERE type = 'trigger' AND lower(tbl_name) IN (SELECT value FROM json_each(?)) ORDER BY name
"""
INDEXES = """
    SELECT name, tbl_name, sql FROM main.sqlite_schema
    WHERE type = 'index' AND sql IS NOT NULL
        AND lower(tbl_name) IN (SELECT value FROM json_each(?)) ORDER BY name
"""


async def require_no_triggers(source: Database, schema: Schema) -> None:
    """Raise `StoreUnusable` for a trigger on a projection's table.

    A trigger may write rows that no handler wrote, and it would be lost with the table.
    """
    names = (json.dumps([*schema, *await source.noted_versions()]),)
    for name, table in await source.fetch_all(TRIGGERS, names):
        raise StoreUnusable(
            f"The table {table} has a trigger {name!r}, which no projection created "
            f"({source.named}).",
            f"drop it (DROP TRIGGER {quoted(name)}): it would be lost with the table, and what it "
            "writes is not what the messages say.",
        )


async def replace_tables(
    writer: FileWriter, schema: Schema, versions: Mapping[str, int], fresh: Path | None = None
) -> tuple[str, ...]:
    """Replace the tables that the file has, in one transaction, and note the versions.

    The rows are copied from the tables of the same names in the file `fresh`. Without one the
    tables are empty. Readers see the old rows until the transaction commits. Indexes that somebody
    else created are created again if the version of their table has not changed. Returns the
    statements of all other dropped indexes: there is no telling whether an earlier version created
    them, or whether they still fit.

    Raises `StoreUnusable`, and changes nothing, if the log has been lost, if a table has a trigger,
    or if the name of a table or an index is already taken by something that no projection created.
    """
    await writer.require_log()
    await require_no_triggers(writer, schema)
    old = await writer.noted_versions()
    for name, kind in await _objects(writer, schema.keys() - old.keys()):
        raise _in_the_way(writer, f"no projection created the {kind} {name}")
    indexes = await writer.fetch_all(INDEXES, (json.dumps(list(old)),))
    async with AsyncExitStack() as stack:
        if fresh is not None:
            await stack.enter_async_context(writer.attached(fresh, "fresh"))
        try:
            async with writer.transaction() as tx:
                await _make(tx, {*old, *schema}, schema)
                for _, table, sql in indexes:
                    if old.get(table.lower()) == versions.get(table.lower()):
                        await tx.run(_MAKES_INDEX.sub(r"\g<0> IF NOT EXISTS", sql))
                for name in schema if fresh is not None else ():
                    await tx.run(COPY.format(name, "fresh"))
                await tx.run("DELETE FROM projections")
                tx.add(NOTE, versions.items())
        except Refused as error:
            raise _in_the_way(writer, str(error)) from error
    there = {name for name, _ in await _objects(writer, [row["name"].lower() for row in indexes])}
    return tuple(row["sql"] for row in indexes if row["name"] not in there)


async def _make(tx: StoreTransaction, dropped: Collection[str], schema: Schema) -> None:
    for name in sorted(dropped):
        await tx.run(f"DROP TABLE IF EXISTS main.{name}")
    # Indexes are created before the rows are inserted: afterwards SQLite would sort them in memory.
    for statement in chain.from_iterable(schema.values()):
        await tx.run(statement)


async def _objects(source: Database, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return name and type of what the file has under these names, ignoring case."""
    rows = await source.fetch_all(OBJECTS, (json.dumps(list(names)),))
    return [(row["name"], row["type"]) for row in rows]


def _in_the_way(writer: FileWriter, what: str) -> StoreUnusable:
    return StoreUnusable(
        f"The projections' tables cannot be put in place (path {writer.path}): {what}.",
        "rename what others created in the file, or give the projection another name.",
    )
