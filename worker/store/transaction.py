"""One SQLite transaction: what handlers see of it, and the store's own part.

A handler's `execute` does not call SQLite: statements wait until they are needed. Those with the
same text then run with one `executemany` (statements.py), and all of them in one call (driver.py).
Failures are noted in a register (failures.py).
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite

from worker.store.driver import COMMIT, Preceded
from worker.store.failures import PlainAuthor, Register
from worker.store.statements import Parameters, Statements, copied, require_harmless

Row = sqlite3.Row
# Follows the statements that wait when nothing is asked.
NOTHING = "SELECT 1 WHERE FALSE"
COMMITS = "SELECT commits FROM file"


class Transaction:
    """What the handler of one message writes and reads through.

    Writes are deferred: SQLite runs them when something is fetched or the batch commits. So
    `try: await tx.execute(...)` catches no error of the statement. Say in the statement what should
    happen instead (`ON CONFLICT ... DO ...`), or fetch first and then decide.
    """

    __slots__ = ("_store",)

    def __init__(self, store: "StoreTransaction") -> None:
        """Write and read in the store's transaction, for the handler that runs."""
        self._store = store

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        """Write: note the statement; it runs before the batch commits or anything is fetched.

        `parameters` is a sequence for `?` and a mapping for `:name`. They are copied, so a list may
        be changed and used again. Raises `ValueError` for a statement that would begin or end a
        transaction, and `TypeError` for parameters that are neither.
        """
        if type(parameters) is not tuple:
            parameters = copied(parameters)
        self._store.statements.add_for_handler(sql, parameters)

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Read: return all rows, with every earlier write of this transaction in them.

        Raises what SQLite raises, for this statement or for one that was deferred until now.
        """
        return await self._store.fetch_for_handler(sql, parameters)

    async def fetch_one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """Read: return the first row, or None; sees and raises what `fetch_all` does."""
        rows = await self.fetch_all(sql, parameters)
        return rows[0] if rows else None


class StoreTransaction:
    """The transaction itself: it runs statements, undoes savepoints, and commits.

    Belongs to one task; ends with the batch.
    """

    def __init__(self, connection: aiosqlite.Connection, path: Path | str) -> None:
        """Work on a connection to this file, on which a transaction begins or has begun."""
        self._connection = connection
        self.statements = Statements()
        """The statements that wait."""
        self.register = Register(path)
        """What has gone wrong."""
        self._for_handlers = Transaction(self)
        self._depth = 0

    def for_author(self, author: PlainAuthor) -> Transaction:
        """Return what an author writes and reads through, until this is called for the next one."""
        self.statements.author = author
        return self._for_handlers

    async def fetch_for_handler(self, sql: str, parameters: Parameters) -> list[Row]:
        """Run what waits, and return all rows of a query of the handler that runs."""
        require_harmless(sql)
        return await self._call(sql, parameters, self.statements.author)

    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run what waits, and return all rows of a query of the store itself.

        It also works after handlers have failed: rows of their streams may be wrong, those of other
        streams are right. Raises `Refused` for a statement of the store.
        """
        return await self._call(sql, parameters)

    async def flush(self) -> None:
        """Run all statements that wait, the store's own and those of handlers.

        Raises `HandlersFailed` for statements of handlers, and `Refused` for those of the store.
        """
        await self._call(NOTHING)
        self.register.require_no_failure()

    def forget(self) -> None:
        """Drop the statements that wait, and forget failures; the caller undoes what has run."""
        self.statements.take()
        self.register.forget()

    def add(self, sql: str, rows: Iterable[Parameters] | None = None) -> None:
        """Add a statement of the store itself to those that wait: for each row, or once."""
        self.statements.add(sql, rows)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undo all that the block wrote, and nothing else, if the block raises.

        Raises what `flush` does for statements of the block, or for some that waited before it.
        """
        # Each level has a name of its own, so that no rollback is taken for that of an inner one.
        name = f"part_{self._depth}"
        await self.run(f"SAVEPOINT {name}")
        self._depth += 1
        try:
            yield
            await self.flush()
        except Exception:
            self.forget()
            # Even if a handler caught it and raised another error, no message is at fault.
            self.register.require_no_store_fault()
            self.add(f"ROLLBACK TO {name}")
            raise
        finally:
            self._depth -= 1
            # With the next call, before anything else.
            self.add(f"RELEASE {name}")

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
        """Run what waits, and then one statement of the store itself; raises what `flush` does."""
        self.add(sql)
        await self.flush()

    async def _call(
        self, sql: str, parameters: Parameters = (), author: PlainAuthor | None = None
    ) -> list[Row]:
        register = self.register
        # A handler that catches an error must not make the batch look complete.
        register.require_none_for(author)
        before = self.statements.take()
        try:
            rows = await self._connection.execute_fetchall(
                sql, Preceded(before, parameters, register.of_handlers, author)
            )
        except Exception as error:
            blamed = register.of_statement(error, author)
            if blamed is error:
                raise
            raise blamed from error
        register.require_none_for(author)
        return list(rows)
