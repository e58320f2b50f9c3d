import sqlite3
from collections import UserDict, deque
from collections.abc import AsyncIterator, Callable, MutableMapping, MutableSequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.unit.projecting import rows
from worker.errors import StoreUnavailable, StoreUnusable
from worker.store.failures import Author, HandlersFailed, Refused
from worker.store.sqlite.faults import fault
from worker.store.sqlite.store import Writer
from worker.store.transaction import StoreTransaction

INSERT = "INSERT INTO t VALUES (?)"
VALUES = "SELECT v FROM t ORDER BY v"


@pytest.fixture
async def writer(tmp_path: Path) -> AsyncIterator[Writer]:
    async with Writer(tmp_path / "p.db") as opened:
        async with opened.transaction() as tx:
            await tx.run("CREATE TABLE t (v TEXT UNIQUE)")
        yield opened


class Boom(Exception):
    """An error raised inside the block."""


async def insert(tx: StoreTransaction, *values: str, fails: bool = False) -> None:
    """Run the first statement and defer the others; fail at the end if told to."""
    for number, value in enumerate(values):
        await tx.for_author(Author("e")).execute(INSERT, (value,))
        if not number:
            await tx.flush()
    if fails:
        raise Boom


async def in_transaction(writer: Writer, *values: str, fails: bool = False) -> None:
    async with writer.transaction() as tx:
        await insert(tx, *values, fails=fails)


async def in_savepoint(tx: StoreTransaction, *values: str, fails: bool = False) -> None:
    async with tx.savepoint():
        await insert(tx, *values, fails=fails)


class TestCommit:
    async def test_is_on_the_disk_after_the_block(self, writer: Writer) -> None:
        """Statements that were executed but not flushed are written, too."""
        async with writer.transaction() as tx:
            await tx.for_author(Author("e")).execute(INSERT, ("a",))
            tx.add(INSERT, [("b",), ("c",)])

        assert rows(Path(writer.path), VALUES) == [("a",), ("b",), ("c",)]

    async def test_is_undone_if_the_block_raises(self, writer: Writer) -> None:
        """Nothing is left, and the next transaction begins as usual."""
        with pytest.raises(Boom):
            await in_transaction(writer, "a", "c", fails=True)
        await in_transaction(writer, "b")

        assert rows(Path(writer.path), VALUES) == [("b",)]

    async def test_is_undone_if_a_statement_fails_at_the_end(self, writer: Writer) -> None:
        """The commit fails if a deferred statement fails."""
        with pytest.raises(HandlersFailed, match="IntegrityError: UNIQUE"):
            await in_transaction(writer, "a", "a")

        assert rows(Path(writer.path), VALUES) == []

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


class TestMeanwhile:
    async def test_is_called_once_for_a_commit(self, writer: Writer) -> None:
        """It is called before the block ends, after all statements have been handed over."""
        called: list[str] = []
        async with writer.transaction(meanwhile=lambda: called.append("meanwhile")) as tx:
            tx.add(INSERT, [("a",)])
            called.append("block")

        assert called == ["block", "meanwhile"]
        assert rows(Path(writer.path), VALUES) == [("a",)]

    async def test_lets_the_commit_end_if_it_fails(self, writer: Writer) -> None:
        """Its exception is raised once the outcome of the commit is known."""

        def fail() -> None:
            raise Boom

        with pytest.raises(Boom):
            async with writer.transaction(meanwhile=fail) as tx:
                tx.add(INSERT, [("a",)])
        await in_transaction(writer, "b")

        assert rows(Path(writer.path), VALUES) == [("a",), ("b",)]


class TestParameters:
    """A handler owns the parameters that it passes, and may change and reuse them."""

    @pytest.mark.parametrize("kind", [list, deque])
    async def test_in_a_sequence_are_copied(
        self, writer: Writer, kind: Callable[[list[str]], MutableSequence[str]]
    ) -> None:
        """Three statements with the same list write three rows."""
        values = kind([""])
        async with writer.transaction() as tx:
            for value in "abc":
                values[0] = value
                await tx.for_author(Author("e")).execute(INSERT, values)
            values.clear()

        assert rows(Path(writer.path), VALUES) == [("a",), ("b",), ("c",)]

    @pytest.mark.parametrize("kind", [dict, UserDict])
    async def test_in_a_mapping_are_copied(
        self, writer: Writer, kind: Callable[[], MutableMapping[str, str]]
    ) -> None:
        """Three statements with the same dictionary write three rows."""
        values = kind()
        async with writer.transaction() as tx:
            for value in "abc":
                values["v"] = value
                await tx.for_author(Author("e")).execute("INSERT INTO t VALUES (:v)", values)
            values.clear()

        assert rows(Path(writer.path), VALUES) == [("a",), ("b",), ("c",)]

    @pytest.mark.parametrize("values", [{"a"}, iter("a"), 7, None])
    async def test_in_neither_are_refused_at_once(self, writer: Writer, values: Any) -> None:
        """An unordered collection or an iterator is not accepted as parameters."""
        async with writer.transaction() as tx:
            with pytest.raises(TypeError, match=f"not {type(values).__name__}"):
                await tx.for_author(Author("e")).execute(INSERT, values)

        assert rows(Path(writer.path), VALUES) == []


class TestWhatHandlersSee:
    async def test_is_three_methods(self, writer: Writer) -> None:
        """A handler can neither end the transaction nor see behind it."""
        async with writer.transaction() as tx:
            seen = [name for name in dir(tx.for_author(Author("e"))) if not name.startswith("_")]

        assert seen == ["execute", "fetch_all", "fetch_one"]

    async def test_defers_a_statement_and_its_error(self, writer: Writer) -> None:
        """A failed statement raises when the handler next fetches, not when it executes."""

        async def write() -> None:
            async with writer.transaction() as tx:
                stream = tx.for_author(Author("e"))
                await stream.execute(INSERT, ("a",))
                await stream.execute(INSERT, ("a",))
                with pytest.raises(sqlite3.IntegrityError):
                    await stream.fetch_one(VALUES)

        with pytest.raises(HandlersFailed):
            await write()

    @pytest.mark.parametrize(
        "sql", ["COMMIT", " /* now */ COMMIT", "-- now\nROLLBACK", ";END", "BEGIN", "RELEASE x",
                "INSERT OR ROLLBACK INTO t VALUES (1)", "INSERT OR/**/ROLLBACK INTO t VALUES (1)"],
    )  # fmt: skip
    async def test_never_ends_the_transaction(self, writer: Writer, sql: str) -> None:
        """This holds however the statement is written, and literals are not mistaken for one."""
        async with writer.transaction() as tx:
            stream = tx.for_author(Author("e"))
            with pytest.raises(ValueError, match="must not begin or end transactions"):
                await stream.execute(sql)
            with pytest.raises(ValueError, match="must not begin or end transactions"):
                await stream.fetch_all(sql)
            await stream.execute("INSERT INTO t VALUES ('this OR ROLLBACK')")

        assert rows(Path(writer.path), VALUES) == [("this OR ROLLBACK",)]


class TestAStatementThatFails:
    async def test_keeps_those_behind_it_from_running(self, writer: Writer) -> None:
        """They are one call, and the transaction commits nothing even if the error is caught."""

        async def write() -> None:
            async with writer.transaction() as tx:
                tx.add(INSERT, [("a",), ("a",)])
                tx.add(INSERT, [("b",)])
                with pytest.raises(Refused, match="UNIQUE"):
                    await tx.fetch_all(VALUES)

        with pytest.raises(Refused, match="UNIQUE"):
            await write()

        assert rows(Path(writer.path), VALUES) == []


class TestFetch:
    async def test_sees_every_earlier_write(self, writer: Writer) -> None:
        """Deferred statements run before anything is read."""
        async with writer.transaction() as tx:
            stream = tx.for_author(Author("e"))
            await stream.execute(INSERT, ("a",))
            first = await stream.fetch_one(VALUES)
            await stream.execute("UPDATE t SET v = 'b'")
            second = await stream.fetch_all(VALUES)
            nothing = await stream.fetch_one("SELECT 1 FROM t WHERE v = ?", ("a",))

        assert first is not None
        assert (first["v"], [tuple(row) for row in second], nothing) == ("a", [("b",)], None)


class TestSavepoint:
    async def test_undoes_its_block_and_nothing_else(self, writer: Writer) -> None:
        """Whether it stands before, after or within others, only the failed block is undone."""
        async with writer.transaction() as tx:
            tx.add(INSERT, [("before",)])
            await tx.flush()
            with pytest.raises(Boom):
                await in_savepoint(tx, "flushed", "waiting", fails=True)
            await in_savepoint(tx, "good")
            tx.add(INSERT, [("after",)])

        assert rows(Path(writer.path), VALUES) == [("after",), ("before",), ("good",)]

    async def test_fails_with_a_statement_that_waited(self, writer: Writer) -> None:
        """A deferred statement belongs to the block in which it was executed."""
        async with writer.transaction() as tx:
            with pytest.raises(HandlersFailed, match="IntegrityError: UNIQUE"):
                await in_savepoint(tx, "a", "a")
            tx.add(INSERT, [("b",)])

        assert rows(Path(writer.path), VALUES) == [("b",)]


class TestOrder:
    async def test_of_each_stream_is_kept(self, writer: Writer) -> None:
        """Streams may overtake each other; within a stream, the order of the calls is kept."""
        append = "UPDATE t SET v = v || {} WHERE v GLOB ?".format
        async with writer.transaction() as tx:
            for stream in "xyz":
                await tx.for_author(Author(stream)).execute(INSERT, (stream,))
            for stream, letters in [("x", "abba"), ("y", "baab"), ("x", "ab"), ("z", "bbb")]:
                for letter in letters:
                    await tx.for_author(Author(stream)).execute(
                        append(f"'{letter}'"), (f"{stream}*",)
                    )

        assert rows(Path(writer.path), VALUES) == [("xabbaab",), ("ybaab",), ("zbbb",)]


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
