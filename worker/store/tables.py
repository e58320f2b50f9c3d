"""The projections' tables: made, replaced, compared, and noted by version.

Knows their names and CREATE statements, not what their columns mean, but for `event_id`. Drops only
what a projection has made and the log can make again.
"""

import json
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import mkstemp
from types import TracebackType
from typing import Self

import aiosqlite

from worker.errors import StoreUnavailable, StoreUnusable
from worker.store import log
from worker.store.checks import identity, opening_failed, require_ours
from worker.store.connection import Database, Writer, read_only_uri
from worker.store.driver import connect
from worker.store.failures import Refused
from worker.store.faults import no_room, primary_code
from worker.store.file import create_private
from worker.store.guard import RESERVED
from worker.store.log import Source
from worker.store.statements import Value
from worker.store.transaction import Row, StoreTransaction

Schema = Mapping[str, tuple[str, ...]]
"""Table -> its CREATE statements."""

Values = tuple[Value, ...]
"""A row: the values of all columns of its table, in order."""

# What is read of other streams at once; a row may have a megabyte.
ROWS_AT_ONCE = 50
STREAMS_AT_ONCE = 200

# Not what SQLite keeps for itself, nor what would hide a function from the worker's own queries.
_NAME = re.compile(r"(?!sqlite_|pragma_|json_(each|tree)$)[a-z][a-z0-9_]*")

# Every name in these statements comes from a registered projection, never from input.
REMOVAL = "DELETE FROM {} WHERE event_id = ?"
INSERTION = "INSERT INTO {} VALUES ({})"
COPY = "INSERT INTO main.{0} SELECT * FROM {1}.{0}"
WITH_ROWS = "SELECT event_id FROM {} WHERE event_id IN (SELECT value FROM json_each(?1))"
LONE_ROWS = """
    SELECT *, count(*) FROM {} WHERE event_id IN (SELECT value FROM json_each(?)) GROUP BY event_id
"""
DIFFERING = """
    SELECT event_id FROM (SELECT {1} FROM live.{0} EXCEPT SELECT {1} FROM main.{0})
    UNION
    SELECT event_id FROM (SELECT {1} FROM main.{0} EXCEPT SELECT {1} FROM live.{0})
    ORDER BY event_id
"""
INDEX = re.compile(r"\s*CREATE\s+INDEX\b", re.IGNORECASE)
# As SQLite keeps it (build.c, sqlite3CreateIndex).
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
COLUMNS = "SELECT name FROM pragma_table_info(?, ?)"
STREAMS = "SELECT number, event_id FROM live.streams WHERE number > ? ORDER BY number LIMIT ?"


@dataclass(frozen=True, slots=True)
class Difference:
    """An event whose live row is not the fold of its stream; None stands for no row."""

    table: str
    event_id: str
    live: Mapping[str, object] | None
    folded: Mapping[str, object] | None


def may_be_named(table: object) -> bool:
    """Tell whether a projection's table may have this name."""
    return isinstance(table, str) and _NAME.fullmatch(table) is not None and table not in RESERVED


async def noted_versions(source: Database) -> dict[str, int]:
    """Return table -> version of the projections that folded this file's rows.

    Raises `StoreUnusable` if the file notes a table that no projection can have made.
    """
    rows = await source.fetch_all("SELECT table_name, version FROM projections")
    for table, _ in rows:
        if not may_be_named(table):
            raise StoreUnusable(
                f"The database notes a projection's table {table!r}, which no projection may have "
                f"(path {source.named}).",
                "restore a backup, or run the version of the worker that wrote the note.",
            )
    return {row["table_name"]: row["version"] for row in rows}


async def require_log(source: Database) -> None:
    """Raise `StoreUnusable` for a file whose log is empty while other tables have rows.

    Such a file is not new: it has lost its log, and nothing could make its rows again.
    """
    if not await log.is_empty(source):
        return
    for table, _ in await _objects(source, ["streams", *await noted_versions(source)]):
        if await source.fetch_all(f"SELECT 1 FROM main.{table} LIMIT 1"):  # noqa: S608 - ours
            raise StoreUnusable(
                f"The log is empty, but the table {table} has rows (path {source.named}).",
                "restore a backup that has the log; or, to begin without these rows, move the file "
                "away or set WORKER_DATABASE to a new one.",
            )


async def with_rows(
    tx: StoreTransaction, names: Iterable[str], event_ids: Collection[str]
) -> set[str]:
    """Give those of the events that have a row in any of the tables, after all that waits."""
    parts = [WITH_ROWS.format(name) for name in names]
    if not event_ids or not parts:
        await tx.flush()
        return set()
    parameters = (json.dumps(list(event_ids), ensure_ascii=False),)
    return {row[0] for row in await tx.fetch_all(" UNION ALL ".join(parts), parameters)}


def insertion(table: str, columns: int) -> str:
    """Return the statement that puts a row into a table."""
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
    """Give the rows of one event, from all tables."""
    sql = "SELECT * FROM {} WHERE event_id = ?"
    return [
        dict(row) for name in names for row in await tx.fetch_all(sql.format(name), (event_id,))
    ]


async def require_no_triggers(source: Database, schema: Schema) -> None:
    """Raise `StoreUnusable` for a trigger on a projection's table.

    It may write rows that no handler has written, and would be gone with the table.
    """
    names = (json.dumps([*schema, *await noted_versions(source)]),)
    for name, table in await source.fetch_all(TRIGGERS, names):
        raise StoreUnusable(
            f"The table {table} has a trigger {name!r}, which no projection has made (path "
            f"{source.named}).",
            f"drop it (DROP TRIGGER {_quoted(name)}): it would be lost with the table, and what it "
            "writes is not what the messages say.",
        )


async def replace_tables(
    writer: Writer, schema: Schema, versions: Mapping[str, int], fresh: Path | None = None
) -> tuple[str, ...]:
    """Put tables in place of those that the file has, in one transaction; note the versions.

    Their rows come from the tables of the same names in the file `fresh`; without one they are
    empty. Readers see the old rows until the transaction commits. Indexes that others have made on
    a table of the same version are made again. Returns the statements of all other indexes that are
    gone: nobody can tell whether an earlier version made them, or whether they still fit.

    Raises `StoreUnusable`, and changes nothing, if the log has been lost, if a table has a trigger,
    or if the file has something of the name of a table or an index that was not made by a
    projection.
    """
    await require_log(writer)
    await require_no_triggers(writer, schema)
    old = await noted_versions(writer)
    for name, kind in await _objects(writer, schema.keys() - old.keys()):
        raise _in_the_way(writer, f"no projection has made the {kind} {name}")
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
    # Indexes, too, before the rows: made afterwards, they would be sorted in memory.
    for statement in chain.from_iterable(schema.values()):
        await tx.run(statement)


async def _objects(source: Database, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return name and type of what the file has under these names, in whatever case."""
    rows = await source.fetch_all(OBJECTS, (json.dumps(list(names)),))
    return [(row["name"], row["type"]) for row in rows]


def _in_the_way(writer: Writer, what: str) -> StoreUnusable:
    return StoreUnusable(
        f"The projections' tables cannot be put in place (path {writer.path}): {what}.",
        "rename what others have made in the file, or give the projection another name.",
    )


class FreshTables(Database):
    """Empty tables in a file of their own, with the live database attached for reading.

    Within the `async with`, one snapshot of the live database is seen, whatever its worker does.
    """

    def __init__(self, live: Path, schema: Schema, file: Path | None = None) -> None:
        """Make the tables in `file`, or, without one, in a temporary file that has no name."""
        super().__init__(file or "")
        self.named = self._live = live
        self._schema = schema
        self._is_temporary = file is None

    async def __aenter__(self) -> Self:
        """Make the file and the tables.

        Raises `StoreUnusable` if the live database is missing, damaged or not ours, and
        `StoreUnavailable` if no file can be made.
        """
        live = read_only_uri(self._live)
        if self._is_temporary:
            self.path = _temporary_file()
        else:
            create_private(self.path)
        try:
            self._connection = await connect(str(self.path))
            try:
                await self._prepare(self._connection, live)
            except BaseException:
                await self.close()
                raise
        except sqlite3.Error as error:
            raise opening_failed(self._live, error) from error
        finally:
            if self._is_temporary:
                # It is open, and gone with its process, however that ends. Not left to SQLite: its
                # own temporary files may be memory (sqlite.org/tempfiles.html).
                os.unlink(self.path)  # noqa: PTH108 - a path that is known to be there
        return self

    async def _prepare(self, connection: aiosqlite.Connection, live: str) -> None:
        connection.row_factory = Row
        # The file is thrown away with its process, so nothing in it must survive a crash.
        await connection.execute("PRAGMA journal_mode = OFF")
        await connection.execute("PRAGMA synchronous = OFF")
        await connection.execute("ATTACH DATABASE ? AS live", (live,))
        application_id, version, _ = await identity(connection, "live")
        require_ours(self._live, application_id, version)
        await connection.execute("BEGIN")
        for statements in self._schema.values():
            # Nobody asks these tables by an index, and each message would have to keep it up.
            for statement in statements:
                if not INDEX.match(statement):
                    await connection.execute(statement)
        self.tx = StoreTransaction(connection, self._live)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Commit, unless the block raised, and close.

        Raises `StoreUnavailable` that names the folder of these tables if it has no room for them:
        the live database is not at fault.
        """
        try:
            if exc is None:
                await self.fetch_all("COMMIT")
        except StoreUnavailable as error:
            exc = error
        await super().__aexit__(exc_type, exc, traceback)
        if isinstance(exc, StoreUnavailable):
            cause = exc.__cause__
            if isinstance(cause, sqlite3.Error) and primary_code(cause) == sqlite3.SQLITE_FULL:
                raise no_room(Path(self.path).parent, cause) from cause
            raise exc

    async def count_messages(self) -> int:
        """Give the number of messages in the live log."""
        (row,) = await self.fetch_all("SELECT count(*) FROM live.log")
        return int(row[0])

    async def count_rows(self, table: str) -> int:
        """Give the number of rows folded into a table here."""
        (row,) = await self.fetch_all(f"SELECT count(*) FROM main.{table}")  # noqa: S608 - ours
        return int(row[0])

    async def streams(self) -> AsyncIterator[dict[int, str]]:
        """Return all streams of the live log, number -> event, some at a time."""
        last = 0
        while rows := await self.fetch_all(STREAMS, (last, STREAMS_AT_ONCE)):
            yield dict(map(tuple, rows))
            last = rows[-1][0]

    async def differing(self, table: str) -> list[str]:
        """Give the events whose rows here and in the live table are not the same."""
        live, here = await self._columns("live", table), await self._columns("main", table)
        if live == here:
            # To the byte, whatever collation a column has.
            exact = ", ".join(f"{_quoted(name)} COLLATE BINARY AS {_quoted(name)}" for name in here)
            rows = await self.fetch_all(DIFFERING.format(table, exact))
        else:
            rows = await self.fetch_all(f"SELECT event_id FROM main.{table}")  # noqa: S608 - ours
        return [row["event_id"] for row in rows]

    async def difference(self, table: str, event_id: str) -> Difference:
        """Give both rows of one event."""
        pair = []
        for schema in ("live", "main"):
            sql = f"SELECT * FROM {schema}.{table} WHERE event_id = ?"  # noqa: S608 - ours
            exists = await self._columns(schema, table)
            found = await self.fetch_all(sql, (event_id,)) if exists else []
            pair.append(dict(found[0]) if found else None)
        return Difference(table, event_id, *pair)

    async def _columns(self, schema: str, table: str) -> list[str]:
        return [row["name"] for row in await self.fetch_all(COLUMNS, (table, schema))]


def _temporary_file() -> Path:
    try:
        descriptor, name = mkstemp(prefix="projection-worker-", suffix=".db")
    except OSError as error:
        raise no_room(os.environ.get("TMPDIR", "/tmp"), error) from error  # noqa: S108 - its name
    os.close(descriptor)
    return Path(name)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
