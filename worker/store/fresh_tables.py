"""Empty tables in a file of their own, for a rebuild and its comparison with the live tables.

Sees the live database through one snapshot and never writes to it.
"""

import os
import re
import sqlite3
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp
from types import TracebackType
from typing import Self

import aiosqlite

from worker.errors import StoreUnavailable
from worker.store.checks import identity, opening_failed, require_ours
from worker.store.connection import Database, read_only_uri
from worker.store.driver import connect
from worker.store.faults import no_room, primary_code
from worker.store.file import create_private
from worker.store.tables import Schema, quoted
from worker.store.transaction import Row, StoreTransaction

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


@dataclass(frozen=True, slots=True)
class Difference:
    """An event whose live row is not the fold of its stream; None stands for no row."""

    table: str
    event_id: str
    live: Mapping[str, object] | None
    folded: Mapping[str, object] | None


class FreshTables(Database):
    """Empty tables in a file of their own, with the live database attached for reading.

    Within the `async with`, all reads see one snapshot of the live database, whatever its worker
    writes meanwhile.
    """

    def __init__(self, live: Path, schema: Schema, file: Path | None = None) -> None:
        """Use `file`, or a temporary file without a name if there is none."""
        super().__init__(file or "")
        self.named = self._live = live
        self._schema = schema
        self._is_temporary = file is None

    async def __aenter__(self) -> Self:
        """Create the file and the tables.

        Raises `StoreUnusable` if the live database is missing, damaged or not ours, and
        `StoreUnavailable` if the file cannot be created.
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
                # The open file stays usable, and disappears with its process, however that ends.
                # SQLite's own temporary files may be in memory (sqlite.org/tempfiles.html).
                os.unlink(self.path)  # noqa: PTH108 - the path is known to exist
        return self

    async def _prepare(self, connection: aiosqlite.Connection, live: str) -> None:
        connection.row_factory = Row
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
        self.tx = StoreTransaction(connection, self._live)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Commit, unless the block raised an exception, and close.

        Raises `StoreUnavailable` if there is no room for these tables. The error names their
        folder, because the live database is not at fault.
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
        """Return the number of messages in the live log."""
        (row,) = await self.fetch_all("SELECT count(*) FROM live.log")
        return int(row[0])

    async def count_rows(self, table: str) -> int:
        """Return the number of rows in one of these tables."""
        (row,) = await self.fetch_all(f"SELECT count(*) FROM main.{table}")  # noqa: S608 - ours
        return int(row[0])

    async def streams(self) -> AsyncIterator[dict[int, str]]:
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
