"""sqlite3's connection, with which many statements are one call.

Each call goes to SQLite's thread and back: some 60 microseconds, and several times that while all
cores are busy. aiosqlite hands `factory` on to sqlite3, and the parameters of a call as they are.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import aiosqlite

Value = str | int | float | bytes | None
Parameters = Sequence[Value] | Mapping[str, Value]
Statements = Sequence[tuple[str, Iterable[Parameters]]]
"""Each text, with the parameters of every time that it is run."""


# A deferred transaction that comes to write fails at once, whatever the busy timeout
# (sqlite.org/lang_transaction.html, section 2.2).
BEGIN = "BEGIN IMMEDIATE"
COMMIT = "COMMIT"


class WrittenByAnother(Exception):
    """Another connection has committed to the file since this one last began a transaction."""


class Preceded(NamedTuple):
    """The parameters of a statement, and what is to be run before it in the same call."""

    statements: Statements
    parameters: Parameters


class StatementsConnection(sqlite3.Connection):
    """Runs what precedes a statement; where one fails, those behind it are not run.

    That is why they are no calls of their own, sent off together: after an error that made SQLite
    roll back by itself, each one behind it would commit alone
    (sqlite.org/lang_transaction.html, section 3).
    """

    _version: int | None = None

    def execute(
        self,
        sql: str,
        parameters: Any = (),  # noqa: ANN401 - as sqlite3 has it
        /,
    ) -> sqlite3.Cursor:
        """Run a statement, as sqlite3 does; `parameters` may be `Preceded`."""
        if isinstance(parameters, Preceded):
            for each, rows in parameters.statements:
                if each == BEGIN:
                    self._begin()
                elif each == COMMIT:
                    # Which sqlite3 does not take many times.
                    super().execute(COMMIT)
                else:
                    self.executemany(each, rows)
            parameters = parameters.parameters
        return super().execute(sql, parameters)

    def _begin(self) -> None:
        """Begin; raise `WrittenByAnother`, once, if the file is not as this connection left it."""
        super().execute(BEGIN)
        # Here it costs 2 microseconds, and as a call of its own some 60. Nobody else can commit
        # from now on.
        ((version,),) = super().execute("PRAGMA data_version").fetchall()
        before, self._version = self._version, version
        if before not in (None, version):
            raise WrittenByAnother


async def connect(uri: str, timeout_seconds: float = 5.0) -> aiosqlite.Connection:
    """Open a database by its URI; nothing begins or commits a transaction but statements."""
    return await aiosqlite.connect(
        uri,
        uri=True,
        isolation_level=None,
        timeout=timeout_seconds,
        factory=StatementsConnection,
    )
