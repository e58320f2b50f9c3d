"""Checks of the projections' tables, in memory, before a file is opened.

SQLite is the judge: it creates the tables beside the worker's own, and reports what it created. The
text of a statement is searched only for mistakes that SQLite would report too late, message by
message.
"""

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NoReturn

from worker.errors import StoreUnusable
from worker.store.database import Database
from worker.store.sqlite.migrations import scripts_after
from worker.store.sqlite.transaction import WITH_ROWS
from worker.store.statements import keywords
from worker.store.tables import REMOVAL, Schema, SchemaMistake

# `CREATE TABLE ... AS SELECT` would insert rows that no handler wrote. `CREATE INDEX IF NOT EXISTS`
# would create nothing if another index already has the name.
_CREATE = re.compile(
    r"\s*CREATE\s+(TABLE\b(?!.*\bAS\s+(SELECT|WITH|VALUES)\b)|(UNIQUE\s+)?INDEX\b(?!\s+IF\s+NOT\b))",
    re.IGNORECASE | re.DOTALL,
)
# A conflict would end the transaction of the whole batch (sqlite.org/lang_conflict.html).
_ENDING = re.compile(r"\bON\s+CONFLICT\s+ROLLBACK\b", re.IGNORECASE)
# What remains of a literal once its quoted text is removed: nothing, or the x of a blob.
_LITERAL = re.compile(
    r"\s*(|x|[-+]?(0x[\da-f]+|[\d.]+(e[-+]?\d+)?)|NULL|TRUE|FALSE)\s*", re.IGNORECASE
)
# Functions whose results do not depend on the message alone.
_UNREPEATABLE = frozenset(
    {"current_date", "current_time", "current_timestamp"}
    | {"date", "time", "datetime", "julianday", "unixepoch", "strftime", "timediff"}
    | {"random", "randomblob", "changes", "total_changes", "last_insert_rowid"}
    | {"sqlite_version", "sqlite_source_id"}
)

# Every name in this statement comes from a registered projection, never from input.
COPY = "INSERT INTO main.{0} SELECT * FROM {1}.{0}"

# Without the indexes that SQLite creates for the keys of a table.
_OBJECTS = "SELECT type, name, tbl_name FROM sqlite_schema WHERE sql IS NOT NULL"
_COLUMNS = "SELECT name, type, dflt_value, pk, hidden FROM pragma_table_xinfo(?)"
_SHAPE = 'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_xinfo(?)'
_IS_STRICT = "SELECT strict FROM pragma_table_list(?) WHERE schema = 'main'"
_UNIQUE = 'SELECT name, "unique" FROM pragma_index_list(?)'
_COLLATIONS = "SELECT name, coll FROM pragma_index_xinfo(?) WHERE key"

_Object = tuple[str, str, str]
"""Type, name, and the table that it belongs to."""


def require_schemas(schemas: Schema) -> None:
    """Create all tables together, in a database in memory.

    Raises `SchemaMistake` for the first table that SQLite cannot create or the worker could not
    maintain.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")  # as in the file
        for script in scripts_after(0):
            connection.executescript(script)
        for table, statements in schemas.items():
            _Trial(connection, table).run(statements)


async def require_columns(source: Database, schemas: Schema) -> None:
    """Raise `StoreUnusable` if a table in the file has other columns than its schema.

    Pass only tables whose version is the one that the file notes. A difference means that a schema
    was changed without raising its version.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for table, statements in schemas.items():
            for statement in statements:
                connection.execute(statement)
            wanted = connection.execute(_SHAPE, (table,)).fetchall()
            found = [tuple(row) for row in await source.fetch_all(_SHAPE, (table,))]
            if found != wanted:
                raise StoreUnusable(
                    f"The table {table} has other columns than its schema, and the same version "
                    f"({source.named}).",
                    "raise the version of the projection, so that the table is rebuilt.",
                )


class _Trial:
    """One table, created and used as the worker will."""

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        self._connection = connection
        self._table = table
        self._refused = ""

    def run(self, statements: Sequence[str]) -> None:
        self._connection.set_authorizer(self._authorize)
        for statement in statements:
            self._build(statement)
        self._require_columns()
        self._require_use()
        self._require_keys()

    def _build(self, statement: str) -> None:
        text = keywords(statement)
        if not _CREATE.match(text):
            self._fail(
                f"has a statement other than CREATE TABLE and CREATE INDEX: {_shown(statement)}",
                "write one CREATE TABLE with its columns, and one CREATE INDEX for each index, "
                "without SELECT or IF NOT EXISTS.",
            )
        if _ENDING.search(text):
            self._fail(
                "says ON CONFLICT ROLLBACK, which would undo the whole batch",
                "leave it out; write ON CONFLICT ... DO ... in the handler's statement.",
            )
        before = self._objects()
        self._execute(statement, (), "cannot be created")
        made = self._objects() - before
        foreign = [f"{kind} {name}" for kind, name, owner in sorted(made) if owner != self._table]
        if foreign or not made:
            self._fail(
                f"has a statement that creates {', '.join(foreign) or 'nothing'} in the file: "
                f"{_shown(statement)}",
                "create this table and indexes on it, under names of their own, and nothing else "
                "(AUTOINCREMENT creates a table, too).",
            )

    def _require_columns(self) -> None:
        columns = self._execute(_COLUMNS, (self._table,))
        types = {name: declared for name, declared, *_ in columns}
        if "event_id" not in types:
            self._fail(
                "has no column event_id",
                "add 'event_id TEXT NOT NULL' as the first column of a key or an index.",
            )
        if not self._keeps_text(types["event_id"]):
            self._fail("has an event_id that changes or refuses text", "declare it TEXT.")
        for name, _, default, _, hidden in columns:
            if hidden:
                self._fail(
                    f"has a generated column, which a rebuild cannot copy: {name}",
                    "let the handlers write it, or put its expression into an index.",
                )
            if default is not None and not _LITERAL.fullmatch(keywords(default)):
                self._fail(
                    f"has a default for {name} that is not a literal: {default}",
                    "write a number, text or NULL; handlers take other values from the message.",
                )
        key = [name for name, _, _, pk, _ in columns if pk]
        if key and "event_id" not in key:
            self._fail_for_key(f"PRIMARY KEY ({', '.join(key)})")

    def _keeps_text(self, declared: str) -> bool:
        """Return whether a column of this type keeps '007' as text (sqlite.org/datatype3.html)."""
        ((is_strict,),) = self._execute(_IS_STRICT, (self._table,))
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as apart:
            try:
                apart.execute(f"CREATE TABLE t (id {declared}) {'STRICT' if is_strict else ''}")
                apart.execute("INSERT INTO t VALUES ('007')")
            except sqlite3.Error:
                return False
            return apart.execute("SELECT id FROM t").fetchall() == [("007",)]

    def _require_use(self) -> None:
        """Try the statements that the worker runs on every projection's table."""
        removal, query = REMOVAL.format(self._table), WITH_ROWS.format(self._table)
        for sql, parameter in ((removal, ""), (query, "[]")):
            plan = self._execute(
                f"EXPLAIN QUERY PLAN {sql}", (parameter,), "has a name that is an SQL keyword"
            )
            if not any(detail.startswith(f"SEARCH {self._table} ") for *_, detail in plan):
                self._fail(
                    "cannot be searched by event_id through a key or an index",
                    "begin a key or an index with event_id: every batch looks rows up by it.",
                )
        self._execute(COPY.format(self._table, "main"), (), "cannot be copied")

    def _require_keys(self) -> None:
        """Check that rows of different events never conflict."""
        for index, is_unique in self._execute(_UNIQUE, (self._table,)):
            collations = dict(self._execute(_COLLATIONS, (index,)))
            if is_unique and "event_id" not in collations:
                self._fail_for_key(index)
            if collations.get("event_id", "BINARY") != "BINARY":
                self._fail(
                    f"treats different ids as equal (COLLATE {collations['event_id']})",
                    "compare event_id without COLLATE.",
                )

    def _fail_for_key(self, key: str) -> NoReturn:
        self._fail(
            f"has a unique key without event_id: {key}",
            "add event_id to it: rows of different events must not depend on each other.",
        )

    def _objects(self) -> set[_Object]:
        return set(self._execute(_OBJECTS))

    def _execute(
        self, sql: str, parameters: Sequence[str] = (), otherwise: str = "cannot be maintained"
    ) -> list[Any]:
        self._refused = ""
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            if self._refused:
                self._fail(
                    f"uses {self._refused}, which may differ each time",
                    "let the handlers write a value that they take from the message.",
                )
            self._fail(
                f"{otherwise}: {error}",
                "correct the schema; tables and indexes of all projections share one set of names.",
            )

    def _authorize(self, action: int, _: str | None, name: str | None, *__: str | None) -> int:
        if action == sqlite3.SQLITE_FUNCTION and name in _UNREPEATABLE:
            self._refused = f"{name}"
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _fail(self, found: str, hint: str) -> NoReturn:
        raise SchemaMistake(self._table, found, hint)


def _shown(statement: str) -> str:
    return " ".join(statement.split())
