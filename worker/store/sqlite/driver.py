"""A connection of sqlite3 that runs many statements in one call.

Each call goes to SQLite's thread and back: some 60 microseconds, and several times that while all
cores are busy. aiosqlite hands `factory` on to sqlite3, and the parameters of a call as they are.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import length_hint
from typing import Any, NamedTuple

import aiosqlite

from worker.store.failures import Failures, HandlersFailed, PlainAuthor, Refused, note
from worker.store.sqlite.faults import blames_statement
from worker.store.sqlite.guard import Guard
from worker.store.sqlite.register import TransactionEnded, WrittenByAnother
from worker.store.statements import Group, Parameters

# A deferred transaction that comes to write fails at once, whatever the busy timeout
# (sqlite.org/lang_transaction.html, section 2.2).
BEGIN = "BEGIN IMMEDIATE"
COMMIT = "COMMIT"


class Preceded(NamedTuple):
    """The parameters of a statement, and the groups that run before it in the same call."""

    groups: Sequence[Group]
    parameters: Parameters
    failures: Failures
    """The handlers' failures so far; the call adds to them."""
    author: PlainAuthor | None
    """The author of the statement itself; None for the store's own."""


class StatementsConnection(sqlite3.Connection):
    """Runs the groups before a statement; if one fails, nothing after it can commit.

    That is why they are not separate calls, sent off together: after an error that made SQLite
    roll back by itself, each one behind it would commit alone
    (sqlite.org/lang_transaction.html, section 3).
    """

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - as sqlite3 has it
        """Open, as sqlite3 does."""
        super().__init__(*args, **options)
        self._version: int | None = None
        self._guard = Guard()
        self.set_authorizer(self._guard.authorize)

    def execute(
        self,
        sql: str,
        parameters: Any = (),  # noqa: ANN401 - as sqlite3 has it
        /,
    ) -> sqlite3.Cursor:
        """Run a statement, as sqlite3 does; `parameters` may be `Preceded`.

        A handler's statement that fails is noted, and the other handlers' statements still run, so
        that one call finds all failures. After a failure, the store may read; instead of any other
        statement of the store, `HandlersFailed` is raised.
        """
        if not isinstance(parameters, Preceded):
            return super().execute(sql, parameters)
        for group in parameters.groups:
            if group.authors:
                self._run_for_handlers(group, group.authors, parameters.failures)
            else:
                _require_none(parameters.failures)
                self._run(group)
        with _refusing() if parameters.author is None else self._guard.guarding(sql):
            return super().execute(sql, parameters.parameters)

    def _run(self, group: Group) -> None:
        with _refusing():
            if group.sql == BEGIN:
                self._begin()
            elif group.rows is None:
                # executemany refuses statements that control transactions.
                super().execute(group.sql)
            else:
                self.executemany(group.sql, group.rows)

    def _run_for_handlers(
        self, group: Group, authors: Sequence[PlainAuthor], failures: Failures
    ) -> None:
        rows = iter(group.rows or ())
        last_failed = -1
        while True:
            try:
                with self._guard.guarding(group.sql):
                    self.executemany(group.sql, rows)
                return
            except BaseException as error:
                # Also SystemExit and the like, which the class of a parameter may raise.
                if not blames_statement(error):
                    raise
                if not self.in_transaction:
                    raise TransactionEnded(str(error)) from error
                failed = len(authors) - length_hint(rows) - 1
                # A statement that fails before it takes a row fails for all rows.
                is_hopeless = failed == last_failed
                blamed = authors[failed + 1 :] if is_hopeless else [authors[failed]]
                for author in blamed:
                    note(failures, author, error)
                if is_hopeless:
                    return
                last_failed = failed

    def _begin(self) -> None:
        """Begin; raise `WrittenByAnother`, once, if the file is not as this connection left it."""
        super().execute(BEGIN)
        # Here it costs 2 microseconds, and as a call of its own some 60. From now on, nobody else
        # can commit.
        ((version,),) = super().execute("PRAGMA data_version").fetchall()
        before, self._version = self._version, version
        if before not in (None, version):
            raise WrittenByAnother


@contextmanager
def _refusing() -> Iterator[None]:
    """Raise `Refused` if a statement of the store itself is at fault."""
    try:
        yield
    except WrittenByAnother:
        raise
    except Exception as error:
        if blames_statement(error):
            raise Refused(str(error)) from error
        raise


def _require_none(failures: Failures) -> None:
    if failures:
        raise HandlersFailed(failures)


async def connect(uri: str, timeout_seconds: float = 5.0) -> aiosqlite.Connection:
    """Open a database by its URI; nothing begins or commits a transaction but statements."""
    return await aiosqlite.connect(
        uri,
        uri=True,
        isolation_level=None,
        timeout=timeout_seconds,
        factory=StatementsConnection,
    )
