"""One SQLite transaction: savepoints, and the statements of handlers, regrouped.

A handler's `execute` costs no thread hop: statements wait until they are needed, and those of one
text are then run with one `executemany` (statements.py).
"""

import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite

from worker.errors import StoreUnusable
from worker.store.faults import StoreFault, casts_doubt, fault
from worker.store.statements import Groups, Parameters, require_harmless

Row = sqlite3.Row


class Transaction:
    """What handlers write and read through. Belongs to one task; ends with the batch."""

    def __init__(self, connection: aiosqlite.Connection, path: Path | str) -> None:
        """Work on a connection to this file, on which a transaction begins or has begun."""
        self._connection = connection
        self._path = path
        self.fault: StoreFault | None = None
        """Set once SQLite has blamed the house: nothing in here will be committed."""
        self.casts_doubt = False
        """Whether the file must be opened anew before anything is believed."""
        self._stream = ""
        self._groups = Groups()
        self._failure: Exception | None = None

    def enter_stream(self, event_id: str) -> None:
        """Say to which stream the following statements belong."""
        self._stream = event_id

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        """Write: run the statement before the transaction commits or anything is fetched."""
        self._groups.add(self._stream, sql, parameters)

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Read: give all rows, with every earlier write of this transaction in them."""
        require_harmless(sql)
        await self.flush()
        try:
            return list(await self._connection.execute_fetchall(sql, parameters))
        except sqlite3.Error as error:
            raise self._blamed(error) from error

    async def fetch_one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """Read: give the first row, or None; sees what `fetch_all` sees."""
        rows = await self.fetch_all(sql, parameters)
        return rows[0] if rows else None

    async def flush(self) -> None:
        """Run all statements that wait. Raises what SQLite raises for a statement of a handler."""
        # What stood behind a statement that failed has not run: a handler that catches the error
        # must not make the batch look whole.
        if failure := self.fault or self._failure:
            raise failure
        groups, self._groups = self._groups, Groups()
        try:
            for sql, rows in groups.in_order:
                await self.execute_many(sql, rows)
        except Exception as error:
            self._failure = error
            raise

    def forget(self) -> None:
        """Drop the statements that wait, and the failure of those before; undo those yourself."""
        self._groups = Groups()
        self._failure = None

    async def execute_many(self, sql: str, rows: Iterable[Parameters]) -> None:
        """Run one statement at once, for each row of parameters."""
        # Never pipelined: after an error that made SQLite roll back by itself, each statement
        # behind it would commit alone (sqlite.org/lang_transaction.html, section 3).
        try:
            await self._connection.executemany(sql, rows)
        except sqlite3.Error as error:
            raise self._blamed(error) from error

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undo all that the block wrote, and nothing else, if the block raises."""
        await self.run("SAVEPOINT one_message")
        try:
            yield
            await self.flush()
        except Exception as error:
            self.forget()
            # Also where a handler has caught it and raised another: no message is at fault.
            if self.fault is not None:
                raise self.fault from self.fault.__cause__
            if not self._connection.in_transaction:
                # Whatever came after would commit by itself, and what came before is undone.
                raise StoreUnusable(
                    f"The transaction of the whole batch was ended from within ({error}).",
                    "a table or trigger must not use ON CONFLICT ROLLBACK or RAISE(ROLLBACK).",
                ) from error
            await self.run("ROLLBACK TO one_message")
            await self.run("RELEASE one_message")
            raise
        await self.run("RELEASE one_message")

    async def run(self, sql: str) -> None:
        """Run one statement of the store itself at once; handlers use `execute`."""
        try:
            await self._connection.execute(sql)
        except sqlite3.Error as error:
            raise self._blamed(error) from error

    def _blamed(self, error: sqlite3.Error) -> Exception:
        blamed = fault(error, self._path)
        if blamed is None:
            return error
        self.fault = blamed
        self.casts_doubt = self.casts_doubt or casts_doubt(error)
        return blamed
