"""Empty tables in a file of their own, for a rebuild and its comparison with the live tables.

Sees the live database through one snapshot and never writes to it.
"""

import os
import re
import sqlite3
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from tempfile import mkstemp
from types import TracebackType
from typing import Self

import aiosqlite

from worker.errors import StoreUnavailable
from worker.store.fresh_tables import Difference, FreshTables
from worker.store.log import Key
from worker.store.sqlite.checks import identity, opening_failed, require_ours
from worker.store.sqlite.connection import FileDatabase, FileWriter, read_only_uri
from worker.store.sqlite.driver import connect
from worker.store.sqlite.faults import no_room, primary_code
from worker.store.sqlite.file import create_private, rebuild_file, remove_rebuild_file
from worker.store.sqlite.tables import replace_tables
from worker.store.sqlite.transaction import SqliteTransaction
from worker.store.tables import Schema, quoted

STREAMS_AT_ONCE = 200

# Every name in these statements comes from a registered projection, never from input.
DIFFERING = """
    SELECT event_id FROM (SELECT {1} FROM live.{0} EXCEPT SELECT {1} FROM main.{0})
    UNION
    SELECT event_id FROM (SELECT {1} FROM main.{0} EXCEPT SELECT {1} FROM live.{0})
    ORDER BY event_id
"""
INDEX = re.compile(r"\s*CREATE\s+INDEX\b", re.IGNORECASE)
COLUMNS = "SELECT name FROM pragma_table_info(?, ?)"
STREAMS = "SELECT number, event_id FROM live.streams WHERE number > ? ORDER BY number LIMIT ?"


class FileTables(FileDatabase, FreshTables):
    """Empty tables in a file of their own, with the live database attached for reading.

    Within the `async with`, all reads see one snapshot of the live database, whatever its worker
    writes meanwhile.
    """

    def __init__(self, live: Path, schema: Schema, writer: FileWriter | None = None) -> None:
        """Fill tables that may replace those of this writer, or are only compared."""
        super().__init__("" if writer is None else rebuild_file(live), blamed=live)
        self._live = live
        self._schema = schema
        self._writer = writer

    async def __aenter__(self) -> Self:
        """Create the file and the tables.

        Raises `StoreUnusable` if the live database is missing, damaged or not ours, and
        `StoreUnavailable` if the file cannot be created.
        """
        live = read_only_uri(self._live)
        if self._writer is None:
            self.path = _temporary_file()
        else:
            remove_rebuild_file(self._live)
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
            if self._writer is None:
                # The open file stays usable, and disappears with its process, however that ends.
                # SQLite's own temporary files may be in memory (sqlite.org/tempfiles.html).
                os.unlink(self.path)  # noqa: PTH108 - the path is known to exist
        return self

    async def _prepare(self, connection: aiosqlite.Connection, live: str) -> None:
        connection.row_factory = sqlite3.Row
        # The file is discarded with its process, so nothing in it needs to survive a crash.
        await connection.execute("PRAGMA journal_mode = OFF")
        await connection.execute("PRAGMA synchronous = OFF")
        await connection.execute("ATTACH DATABASE ? AS live", (live,))
        application_id, version, _ = await identity(connection, "live")
        require_ours(self._live, application_id, version)
        await connection.execute("BEGIN")
        for statements in self._schema.values():
            # No query here uses an index, and each message would have to update it.
            for statement in statements:
                if not INDEX.match(statement):
                    await connection.execute(statement)
        self.tx = SqliteTransaction(connection, self._live)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close, and remove the file.

        Raises `StoreUnavailable` if there is no room for these tables. The error names their
        folder, because the live database is not at fault.
        """
        await super().__aexit__(exc_type, exc, traceback)
        if self._writer is not None:
            remove_rebuild_file(self._live)
        if isinstance(exc, StoreUnavailable):
            cause = exc.__cause__
            if isinstance(cause, sqlite3.Error) and primary_code(cause) == sqlite3.SQLITE_FULL:
                raise no_room(Path(self.path).parent, cause) from cause

    async def put_in_place(self, versions: Mapping[str, int]) -> tuple[str, ...]:
        """Replace the live tables by these in one transaction, note the versions, and end.

        Raises `StoreUnavailable` if the log is no longer the one that was folded, because somebody
        else has committed meanwhile.
        """
        if self._writer is None:
            raise ValueError("these tables are only for a comparison")
        await self.fetch_all("COMMIT")
        await self.close()
        return await replace_tables(self._writer, self._schema, versions, Path(self.path))

    async def count_messages(self) -> int:
        """Return the number of messages in the live log."""
        (row,) = await self.fetch_all("SELECT count(*) FROM live.log")
        return int(row[0])

    async def count_rows(self, table: str) -> int:
        """Return the number of rows in one of these tables."""
        (row,) = await self.fetch_all(f"SELECT count(*) FROM main.{table}")  # noqa: S608 - ours
        return int(row[0])

    async def streams(self) -> AsyncIterator[dict[Key, str]]:
        """Yield all streams of the live log in batches: number -> event."""
        last = 0
        while rows := await self.fetch_all(STREAMS, (last, STREAMS_AT_ONCE)):
            yield dict(map(tuple, rows))
            last = rows[-1][0]

    async def differing(self, table: str) -> list[str]:
        """Return the events whose rows here and in the live table differ."""
        live, here = await self._columns("live", table), await self._columns("main", table)
        if live == here:
            # Compare byte by byte, whatever collation a column has.
            exact = ", ".join(f"{quoted(name)} COLLATE BINARY AS {quoted(name)}" for name in here)
            rows = await self.fetch_all(DIFFERING.format(table, exact))
        else:
            rows = await self.fetch_all(f"SELECT event_id FROM main.{table}")  # noqa: S608 - ours
        return [row["event_id"] for row in rows]

    async def difference(self, table: str, event_id: str) -> Difference:
        """Return both rows of one event."""
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
        raise no_room(os.environ.get("TMPDIR", "/tmp"), error) from error  # noqa: S108 - only named
    os.close(descriptor)
    return Path(name)
