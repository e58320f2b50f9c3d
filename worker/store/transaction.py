"""One SQLite transaction: what handlers see of it, and the store's own part.

A handler's `execute` costs no call of SQLite: statements wait until they are needed. Those of one
text are then run with one `executemany` (statements.py), and all in one call (driver.py).
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite

from worker.errors import StoreUnusable
from worker.store.driver import COMMIT, Parameters, Preceded, WrittenByAnother
from worker.store.faults import (
    StoreFault,
    casts_doubt,
    fault,
    out_of_memory,
    written_by_another,
)
from worker.store.statements import Groups, copied, require_harmless

Row = sqlite3.Row
Fetch = Callable[[str, Parameters], Awaitable[list[Row]]]
# What is run where only that matters which precedes it.
NOTHING = "SELECT 1 WHERE FALSE"
COMMITS = "SELECT commits FROM file"


class Transaction:
    """What the handlers of one stream write and read through.

    Writes are deferred: SQLite runs them when something is fetched or the batch commits. So
    `try: await tx.execute(...)` catches no error of the statement. Say in the statement what is to
    happen instead (`ON CONFLICT ... DO ...`), or fetch first and then decide.
    """

    __slots__ = ("_fetch", "_groups", "_stream")

    def __init__(self, stream: str, groups: Groups, fetch: Fetch) -> None:
        """Write into the statements that wait, as those of one stream; read by running them."""
        self._stream = stream
        self._groups = groups
        self._fetch = fetch

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        """Write: note the statement; it runs before the batch commits or anything is fetched.

        `parameters` is a sequence for `?` and a mapping for `:name`. They are copied, so a list may
        be changed and used again. Raises `ValueError` for a statement that would begin or end a
        transaction, and `TypeError` for parameters that are neither.
        """
        if type(parameters) is not tuple:
            parameters = copied(parameters)
        self._groups.add(self._stream, sql, parameters)

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Read: return all rows, with every earlier write of this transaction in them.

        Raises what SQLite raises, for this statement or for one that was deferred until now.
        """
        return await self._fetch(sql, parameters)

    async def fetch_one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """Read: return the first row, or None; sees and raises what `fetch_all` does."""
        rows = await self.fetch_all(sql, parameters)
        return rows[0] if rows else None


class StoreTransaction:
    """The transaction itself: statements that wait, savepoints, faults, and the commit.

    Belongs to one task; ends with the batch.
    """

    def __init__(self, connection: aiosqlite.Connection, path: Path | str) -> None:
        """Work on a connection to this file, on which a transaction begins or has begun."""
        self._connection = connection
        self._path = path
        self.fault: StoreFault | None = None
        """Set once SQLite has blamed the house: nothing in here will be committed."""
        self.casts_doubt = False
        """Whether the file must be opened anew before anything is believed."""
        self._groups = Groups()
        self._waiting: list[tuple[str, Iterable[Parameters]]] = []
        self._failure: Exception | None = None

    def of_stream(self, event_id: str) -> Transaction:
        """Return what the handlers of one stream write and read through."""
        return Transaction(event_id, self._groups, self.fetch_all)

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run what waits, and return all rows of a query."""
        require_harmless(sql)
        return await self._call(sql, parameters)

    async def flush(self) -> None:
        """Run all statements that wait, the store's own and those of handlers.

        Raises what SQLite raises for one of them.
        """
        await self._call(NOTHING)

    def forget(self) -> None:
        """Drop the statements that wait, and the failure of those before; undo those yourself."""
        self._groups.take()
        self._waiting = []
        self._failure = None

    def add(self, sql: str, rows: Iterable[Parameters] = ((),)) -> None:
        """Add a statement of the store itself, for each row of parameters, to those that wait."""
        self._waiting += [*self._groups.take(), (sql, rows)]

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

    async def commit(self, meanwhile: Callable[[], None] | None = None) -> int:
        """Run what waits, and commit; `meanwhile` is called while SQLite does.

        Returns how many commits have appended to the log of this file.
        """
        self.add(COMMIT)
        committing = asyncio.ensure_future(self._call(COMMITS))
        try:
            if meanwhile is not None:
                # One turn of the loop hands the statement over; between it and the next, the loop
                # lets go of Python's lock, and SQLite's thread takes it. Otherwise that thread
                # would wait for the lock (sys.getswitchinterval, 5 ms) or for `meanwhile` to end.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                meanwhile()
        finally:
            ((commits,),) = await committing
        return int(commits)

    async def run(self, sql: str) -> None:
        """Run what waits, and then one statement of the store itself."""
        await self._call(sql)

    async def _call(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        # What stood behind a statement that failed has not run: a handler that catches the error
        # must not make the batch look whole.
        if failure := self.fault or self._failure:
            raise failure
        before = [*self._waiting, *self._groups.take()]
        self._waiting = []
        try:
            rows = await self._connection.execute_fetchall(sql, Preceded(before, parameters))
        except sqlite3.Error as error:
            self._failure = self._blamed(error)
            raise self._failure from error
        except WrittenByAnother as error:
            self.fault = self._failure = written_by_another(self._path)
            raise self.fault from error
        except MemoryError as error:
            # What Python makes of SQLITE_NOMEM; SQLite may have rolled back by itself.
            self.fault = self._failure = out_of_memory(self._path)
            raise self.fault from error
        except Exception as error:
            self._failure = error
            raise
        return list(rows)

    def _blamed(self, error: sqlite3.Error) -> Exception:
        blamed = fault(error, self._path)
        if blamed is None:
            return error
        self.fault = blamed
        self.casts_doubt = self.casts_doubt or casts_doubt(error)
        return blamed
