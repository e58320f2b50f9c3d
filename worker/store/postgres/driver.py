"""Runs the statements of one transaction, so that a failure of some undoes no others.

After an error, PostgreSQL does nothing more in a transaction but to go back to a savepoint. So one
is set before the statements of handlers, and those that failed together are run again in halves:
a single one of a thousand is found in some twenty steps.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

from worker.store.failures import Failures, HandlersFailed, PlainAuthor, Refused, note
from worker.store.postgres.dialect import translated
from worker.store.postgres.faults import UNIQUE_VIOLATION, code_of, fault, incomplete
from worker.store.postgres.guard import Guard
from worker.store.postgres.session import Session
from worker.store.statements import Group, Parameters, Row

# No savepoint of a transaction has this name (transaction.py).
MARK = "handlers"


class Driver:
    """Runs statements in a transaction of a session."""

    def __init__(self, session: Session, guard: Guard, named: str) -> None:
        """Run in a transaction that has begun; errors name the database so."""
        self._session = session
        self._guard = guard
        self._named = named
        self._marked: list[tuple[str, bool]] = [("", False)]
        """The transaction, and each savepoint in it by its name: whether it holds a mark."""
        self._is_clean = False
        """Whether nothing was written since the mark."""

    async def run(self, groups: Sequence[Group], failures: Failures) -> None:
        """Run groups; add to the failures of handlers.

        A handler's statement that fails is noted, and the other handlers' statements still run.
        After a failure, `HandlersFailed` is raised instead of any statement of the store.
        """
        for for_handlers, some in groupby(groups, key=lambda group: bool(group.authors)):
            if for_handlers:
                await self._run_for_handlers(list(some), failures)
            else:
                for group in some:
                    if failures:
                        raise HandlersFailed(failures)
                    await self._run_own(group)

    async def fetch(self, sql: str, parameters: Parameters) -> list[Row]:
        """Return the rows of a statement of the store itself."""
        self._is_clean = False
        try:
            return await self._session.fetch(sql, parameters)
        except Exception as error:
            raise self.refused(error) from error

    async def fetch_for_handler(self, sql: str, parameters: Parameters) -> list[Row]:
        """Return the rows of a handler's statement; raises whatever it raises."""
        await self._mark()
        try:
            if not self._guard.knows(sql):
                await self._guard.check(sql, translated(sql).sql)
            self._is_clean = not self._guard.writes(sql)
            return await self._session.fetch(sql, parameters)
        except Exception as error:
            if self._blames_statement(error):
                await self._undo()
            raise

    def refused(self, error: Exception) -> Exception:
        """Return the error to raise for one of a statement of the store itself."""
        if not self._blames_statement(error):
            return error
        if code_of(error) == UNIQUE_VIOLATION:
            return Refused(str(error))
        return incomplete(self._named, error)

    async def _run_own(self, group: Group) -> None:
        self._is_clean = False
        try:
            if group.rows is None:
                await self._session.run(group.sql)
                self._follow(group.sql)
                return
            rows = list(group.rows)
            if len(rows) == 1:
                await self._session.fetch(group.sql, rows[0])
            elif rows:
                await self._session.run_many(group.sql, rows)
        except Exception as error:
            raise self.refused(error) from error

    def _follow(self, sql: str) -> None:
        """Note what a statement of the transaction does to the savepoints, and to marks in them."""
        what, _, name = sql.rpartition(" ")
        if what == "SAVEPOINT":
            self._marked.append((name, False))
        elif what in ("ROLLBACK TO", "RELEASE"):
            # Savepoints within it end with it, whether or not they were released.
            while self._marked.pop()[0] != name:
                pass
            if what == "ROLLBACK TO":
                self._marked.append((name, False))

    async def _run_for_handlers(self, groups: list[Group], failures: Failures) -> None:
        allowed = [group for group in groups if await self._may_run(group, failures)]
        await self._attempt(allowed, failures)

    async def _may_run(self, group: Group, failures: Failures) -> bool:
        """Check a text; one that cannot be prepared fails for all of its authors."""
        if self._guard.knows(group.sql):
            return True
        await self._mark()
        try:
            await self._guard.check(group.sql, translated(group.sql).sql)
        except Exception as error:
            if not self._blames_statement(error):
                raise
            await self._undo()
            for author in group.authors:
                note(failures, author, error)
            return False
        return True

    async def _attempt(self, groups: list[Group], failures: Failures) -> None:
        """Run groups of handlers; if that fails, undo it and try each half."""
        if not groups:
            return
        await self._mark()
        try:
            self._is_clean = False
            for group in groups:
                await self._run_group(group)
        except Exception as error:
            if not self._blames_statement(error):
                raise
            await self._undo()
            if sum(len(group.authors) for group in groups) == 1:
                note(failures, groups[0].authors[0], error)
                return
            for half in _halves(groups):
                await self._attempt(half, failures)

    async def _run_group(self, group: Group) -> None:
        await self._session.run_many(group.sql, list(group.rows or ()))

    async def _mark(self) -> None:
        """Set the savepoint to go back to."""
        if self._is_clean:
            return
        within, is_marked = self._marked[-1]
        before = f"RELEASE {MARK};" if is_marked else ""
        await self._session.run(f"{before} SAVEPOINT {MARK}")
        self._marked[-1] = (within, True)
        self._is_clean = True

    async def _undo(self) -> None:
        """Go back to the mark."""
        await self._session.run(f"ROLLBACK TO {MARK}")
        self._is_clean = True

    def _blames_statement(self, error: Exception) -> bool:
        return not isinstance(error, MemoryError) and fault(error, self._named) is None


def _halves(groups: Iterable[Group]) -> tuple[list[Group], list[Group]]:
    """Cut groups in the middle of their statements."""
    statements: list[tuple[str, Parameters, PlainAuthor]] = [
        (group.sql, row, author)
        for group in groups
        for row, author in zip(group.rows or (), group.authors, strict=True)
    ]
    middle = len(statements) // 2
    return _grouped(statements[:middle]), _grouped(statements[middle:])


def _grouped(statements: Sequence[tuple[str, Parameters, PlainAuthor]]) -> list[Group]:
    grouped = []
    for sql, some in groupby(statements, key=lambda statement: statement[0]):
        _, rows, authors = zip(*some, strict=True)
        grouped.append(Group(sql, rows, authors))
    return grouped
