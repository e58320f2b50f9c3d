import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.places import rows
from worker.errors import StoreUnavailable, StoreUnusable
from worker.store.sqlite.faults import fault
from worker.store.sqlite.store import Writer

INSERT = "INSERT INTO t VALUES (?)"
VALUES = "SELECT v FROM t ORDER BY v"


@pytest.fixture
async def writer(tmp_path: Path) -> AsyncIterator[Writer]:
    async with Writer(tmp_path / "p.db") as opened:
        async with opened.transaction() as tx:
            await tx.run("CREATE TABLE t (v TEXT UNIQUE)")
        yield opened


class TestBeginning:
    async def test_needs_the_lock_at_the_beginning(self, writer: Writer) -> None:
        """Nobody else writes from the first statement on."""
        with closing(sqlite3.connect(writer.path, timeout=0)) as other:
            async with writer.transaction() as tx:
                await tx.flush()
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    other.execute("BEGIN IMMEDIATE")

    async def test_names_the_file_if_it_cannot_begin(self, writer: Writer) -> None:
        """No message is at fault if another process is writing, and a later try succeeds."""
        with closing(sqlite3.connect(writer.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
                async with writer.transaction():
                    pass
        async with writer.transaction() as tx:
            tx.add(INSERT, [("a",)])

        assert rows(Path(writer.path), VALUES) == [("a",)]


# Python's sqlite3 reports these extended codes, with the primary code in the lowest byte; pysqlite3
# reports primary codes.
EXTENDED_CODES = {
    "SQLITE_BUSY_SNAPSHOT": 517,
    "SQLITE_IOERR_FSYNC": 1034,
    "SQLITE_CORRUPT_INDEX": 779,
    "SQLITE_CONSTRAINT_UNIQUE": 2067,
}


def error_of(name: str) -> sqlite3.Error:
    """Return the error that SQLite raises for a result code."""
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = EXTENDED_CODES.get(name) or getattr(sqlite3, name)
    error.sqlite_errorname = name
    return error


class TestWhoIsToBlame:
    @pytest.mark.parametrize(
        "name",
        ["SQLITE_BUSY", "SQLITE_BUSY_SNAPSHOT", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR",
         "SQLITE_IOERR_FSYNC", "SQLITE_READONLY", "SQLITE_CANTOPEN",
         "SQLITE_PROTOCOL", "SQLITE_INTERRUPT"],
    )  # fmt: skip
    def test_is_the_moment(self, name: str) -> None:
        """These primary and extended codes do not concern the statement, and the cause may pass."""
        blamed = fault(error_of(name), "p.db")

        assert isinstance(blamed, StoreUnavailable)
        assert blamed.message == f"The database cannot be used now (path p.db, {name}: no)."

    @pytest.mark.parametrize("name", ["SQLITE_CORRUPT", "SQLITE_CORRUPT_INDEX", "SQLITE_NOTADB"])
    def test_is_the_file(self, name: str) -> None:
        """Waiting does not repair a damaged file; the hint says how to."""
        blamed = fault(error_of(name), "p.db")

        assert isinstance(blamed, StoreUnusable)
        assert blamed.message == f"The database is damaged (path p.db, {name}: no)."
        assert ".recover" in blamed.hint

    @pytest.mark.parametrize(
        "name",
        ["SQLITE_CONSTRAINT", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_ERROR", "SQLITE_TOOBIG",
         "SQLITE_MISMATCH", "SQLITE_RANGE", "SQLITE_MISUSE"],
    )  # fmt: skip
    def test_is_the_statement(self, name: str) -> None:
        """Waiting does not help with these codes."""
        assert fault(error_of(name), "p.db") is None

    def test_is_the_statement_without_a_code(self) -> None:
        """These are Python's own errors, such as a wrong number of parameters."""
        assert fault(sqlite3.ProgrammingError("no"), "p.db") is None
