"""The projections' tables: creating and replacing them, reading their rows, noting their versions.

Knows the tables' names and CREATE statements. Of their columns it knows only `event_id`. Drops only
what a projection created and the log can restore.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import chain
from pathlib import Path

from worker.errors import StoreUnusable
from worker.store import log
from worker.store.connection import Database, Writer
from worker.store.failures import Refused
from worker.store.guard import RESERVED
from worker.store.log import Source
from worker.store.statements import Value
from worker.store.transaction import StoreTransaction

Schema = Mapping[str, tuple[str, ...]]
"""Table -> its CREATE statements."""

Values = tuple[Value, ...]
"""A row: the values of all columns of its table, in order."""

# How many events one query reads the rows of. Few, because a row may have a megabyte.
ROWS_AT_ONCE = 50

# Excludes names that SQLite reserves, and names that would hide a function which the worker's own
# queries use.
_NAME = re.compile(r"(?!sqlite_|pragma_|json_(each|tree)$)[a-z][a-z0-9_]*")

# Every name in these statements comes from a registered projection, never from input.
REMOVAL = "DELETE FROM {} WHERE event_id = ?"
INSERTION = "INSERT INTO {} VALUES ({})"
COPY = "INSERT INTO main.{0} SELECT * FROM {1}.{0}"
WITH_ROWS = "SELECT event_id FROM {} WHERE event_id IN (SELECT value FROM json_each(?1))"
LONE_ROWS = """
    SELECT *, count(*) FROM {} WHERE event_id IN (SELECT value FROM json_each(?)) GROUP BY event_id
"""
# The spelling in which SQLite stores the statement (build.c, sqlite3CreateIndex).
_MAKES_INDEX = re.compile(r"CREATE( UNIQUE)? INDEX")
NOTE = "INSERT INTO projections (table_name, version) VALUES (?, ?)"
OBJECTS = """
    SELECT name, type FROM main.sqlite_schema
    WHERE lower(name) IN (SELECT value FROM json_each(?)) ORDER BY name
"""
TRIGGERS = """
    SELECT name, tbl_name FROM main.sqlite_schema
    WHERE type = 'trigger' AND lower(tbl_name) IN (SELECT value FROM json_each(?)) ORDER BY name
"""
INDEXES = """
    SELECT name, tbl_name, sql FROM main.sqlite_schema
    WHERE type = 'index' AND sql IS NOT NULL
        AND lower(tbl_name) IN (SELECT value FROM json_each(?)) ORDER BY name
"""


def may_be_named(table: object) -> bool:
    """Return whether a projection's table may have this name."""
    return isinstance(table, str) and _NAME.fullmatch(table) is not None and table not in RESERVED


async def noted_versions(source: Database) -> dict[str, int]:
    """Return table -> version of the projection that folded this file's rows.

    Raises `StoreUnusable` if the file notes a table name that no projection can have.
    """
    rows = await source.fetch_all("SELECT table_name, version FROM projections")
    for table, _ in rows:
        if not may_be_named(table):
            raise StoreUnusable(
                f"The database notes a projection with the table {table!r}, a name that no "
                f"projection may use (path {source.named}).",
                "restore a backup, or run the version of the worker that wrote the note.",
            )
    return {row["table_name"]: row["version"] for row in rows}


async def require_log(source: Database) -> None:
    """Raise `StoreUnusable` for a file whose log is empty while other tables have rows.

    Such a file is not new. It has lost its log, so nothing could restore its rows.
    """
    if not await log.is_empty(source):
        return
    for table, _ in await _objects(source, ["streams", *await noted_versions(source)]):
        if await source.fetch_all(f"SELECT 1 FROM main.{table} LIMIT 1"):  # noqa: S608 - ours
            raise StoreUnusable(
                f"The log is empty, but the table {table} has rows (path {source.named}).",
                "restore a backup that has the log; or, to start without these rows, move the file "
                "away or set WORKER_DATABASE to a new one.",
            )


async def with_rows(
    tx: StoreTransaction, names: Iterable[str], event_ids: Collection[str]
) -> set[str]:
    """Return the events that have a row in any of the tables, once pending statements have run."""
    parts = [WITH_ROWS.format(name) for name in names]
    if not event_ids or not parts:
        await tx.flush()
        return set()
    parameters = (json.dumps(list(event_ids), ensure_ascii=False),)
    return {row[0] for row in await tx.fetch_all(" UNION ALL ".join(parts), parameters)}


def insertion(table: str, columns: int) -> str:
    """Return the statement that inserts a row into a table."""
    return INSERTION.format(table, ", ".join("?" * columns))


async def lone_rows(
    source: Source, names: Iterable[str], event_ids: Sequence[str]
) -> dict[str, dict[str, Values] | None]:
    """Return event -> table -> its row; None for an event that has several rows in one table."""
    found: dict[str, dict[str, Values] | None] = {event_id: {} for event_id in event_ids}
    for start in range(0, len(event_ids), ROWS_AT_ONCE):
        some = json.dumps(event_ids[start : start + ROWS_AT_ONCE], ensure_ascii=False)
        for name in names:
            for row in await source.fetch_all(LONE_ROWS.format(name), (some,)):
                *values, count = row
                of_event = found[row["event_id"]]
                if count > 1:
                    found[row["event_id"]] = None
                elif of_event is not None:
                    of_event[name] = tuple(values)
    return found


async def rows_of(
    tx: StoreTransaction, names: Iterable[str], event_id: str
) -> list[dict[str, object]]:
    """Return the rows of one event from all tables."""
    sql = "SELECT * FROM {} WHERE event_id = ?"
    return [
        dict(row) for name in names for row in await tx.fetch_all(sql.format(name), (event_id,))
    ]


async def require_no_triggers(source: Database, schema: Schema) -> None:
    """Raise `StoreUnusable` for a trigger on a projection's table.

    A trigger may write rows that no handler wrote, and it would be lost with the table.
    """
    names = (json.dumps([*schema, *await noted_versions(source)]),)
    for name, table in await source.fetch_all(TRIGGERS, names):
        raise StoreUnusable(
            f"The table {table} has a trigger {name!r}, which no projection created (path "
            f"{source.named}).",
            f"drop it (DROP TRIGGER {quoted(name)}): it would be lost with the table, and what it "
            "writes is not what the messages say.",
        )


async def replace_tables(
    writer: Writer, schema: Schema, versions: Mapping[str, int], fresh: Path | None = None
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
    await require_log(writer)
    await require_no_triggers(writer, schema)
    old = await noted_versions(writer)
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


def _in_the_way(writer: Writer, what: str) -> StoreUnusable:
    return StoreUnusable(
        f"The projections' tables cannot be put in place (path {writer.path}): {what}.",
        "rename what others created in the file, or give the projection another name.",
    )


def quoted(name: str) -> str:
    """Return a name quoted for use in a statement."""
    return '"' + name.replace('"', '""') + '"'
