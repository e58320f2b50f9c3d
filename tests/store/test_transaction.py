import re
from collections import UserDict, deque
from collections.abc import AsyncIterator, Callable, MutableMapping, MutableSequence
from typing import Any

import pytest

from tests.places import Place, rows, writer_at
from worker.store.database import Writer
from worker.store.failures import Author, HandlersFailed, Refused
from worker.store.transaction import StoreTransaction

INSERT = "INSERT INTO t VALUES (?)"
# Either store's word for it.
UNIQUE = re.compile("unique", re.IGNORECASE)
VALUES = "SELECT v FROM t ORDER BY v"


@pytest.fixture
async def writer(place: Place) -> AsyncIterator[Writer]:
    async with writer_at(place) as opened:
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


async def nested(tx: StoreTransaction) -> None:
    """Fail within two savepoints, of which the inner one has failed before."""
    async with tx.savepoint():
        await insert(tx, "outer")
        with pytest.raises(HandlersFailed):
            await in_savepoint(tx, "inner", "inner")
        await in_savepoint(tx, "inner", fails=True)


class TestCommit:
    async def test_is_on_the_disk_after_the_block(self, writer: Writer, place: Place) -> None:
        """Statements that were executed but not flushed are written, too."""
        async with writer.transaction() as tx:
            await tx.for_author(Author("e")).execute(INSERT, ("a",))
            tx.add(INSERT, [("b",), ("c",)])

        assert rows(place, VALUES) == [("a",), ("b",), ("c",)]

    async def test_is_undone_if_the_block_raises(self, writer: Writer, place: Place) -> None:
        """Nothing is left, and the next transaction begins as usual."""
        with pytest.raises(Boom):
            await in_transaction(writer, "a", "c", fails=True)
        await in_transaction(writer, "b")

        assert rows(place, VALUES) == [("b",)]

    async def test_is_undone_if_a_statement_fails_at_the_end(
        self, writer: Writer, place: Place
    ) -> None:
        """The commit fails if a deferred statement fails."""
        with pytest.raises(HandlersFailed, match=UNIQUE):
            await in_transaction(writer, "a", "a")

        assert rows(place, VALUES) == []


class TestMeanwhile:
    async def test_is_called_once_for_a_commit(self, writer: Writer, place: Place) -> None:
        """It is called before the block ends, after all statements have been handed over."""
        called: list[str] = []
        async with writer.transaction(meanwhile=lambda: called.append("meanwhile")) as tx:
            tx.add(INSERT, [("a",)])
            called.append("block")

        assert called == ["block", "meanwhile"]
        assert rows(place, VALUES) == [("a",)]

    async def test_lets_the_commit_end_if_it_fails(self, writer: Writer, place: Place) -> None:
        """Its exception is raised once the outcome of the commit is known."""

        def fail() -> None:
            raise Boom

        with pytest.raises(Boom):
            async with writer.transaction(meanwhile=fail) as tx:
                tx.add(INSERT, [("a",)])
        await in_transaction(writer, "b")

        assert rows(place, VALUES) == [("a",), ("b",)]


class TestParameters:
    """A handler owns the parameters that it passes, and may change and reuse them."""

    @pytest.mark.parametrize("kind", [list, deque])
    async def test_in_a_sequence_are_copied(
        self, writer: Writer, place: Place, kind: Callable[[list[str]], MutableSequence[str]]
    ) -> None:
        """Three statements with the same list write three rows."""
        values = kind([""])
        async with writer.transaction() as tx:
            for value in "abc":
                values[0] = value
                await tx.for_author(Author("e")).execute(INSERT, values)
            values.clear()

        assert rows(place, VALUES) == [("a",), ("b",), ("c",)]

    @pytest.mark.parametrize("kind", [dict, UserDict])
    async def test_in_a_mapping_are_copied(
        self, writer: Writer, place: Place, kind: Callable[[], MutableMapping[str, str]]
    ) -> None:
        """Three statements with the same dictionary write three rows."""
        values = kind()
        async with writer.transaction() as tx:
            for value in "abc":
                values["v"] = value
                await tx.for_author(Author("e")).execute("INSERT INTO t VALUES (:v)", values)
            values.clear()

        assert rows(place, VALUES) == [("a",), ("b",), ("c",)]

    @pytest.mark.parametrize("values", [{"a"}, iter("a"), 7, None])
    async def test_in_neither_are_refused_at_once(
        self, writer: Writer, place: Place, values: Any
    ) -> None:
        """An unordered collection or an iterator is not accepted as parameters."""
        async with writer.transaction() as tx:
            with pytest.raises(TypeError, match=f"not {type(values).__name__}"):
                await tx.for_author(Author("e")).execute(INSERT, values)

        assert rows(place, VALUES) == []


class TestWhatHandlersSee:
    async def test_is_three_methods(self, writer: Writer, place: Place) -> None:
        """A handler can neither end the transaction nor see behind it."""
        async with writer.transaction() as tx:
            seen = [name for name in dir(tx.for_author(Author("e"))) if not name.startswith("_")]

        assert seen == ["execute", "fetch_all", "fetch_one"]

    async def test_defers_a_statement_and_its_error(self, writer: Writer, place: Place) -> None:
        """A failed statement raises when the handler next fetches, not when it executes."""

        async def write() -> None:
            async with writer.transaction() as tx:
                stream = tx.for_author(Author("e"))
                await stream.execute(INSERT, ("a",))
                await stream.execute(INSERT, ("a",))
                with pytest.raises(Exception, match=UNIQUE):
                    await stream.fetch_one(VALUES)

        with pytest.raises(HandlersFailed):
            await write()

    @pytest.mark.parametrize(
        "sql", ["COMMIT", " /* now */ COMMIT", "-- now\nROLLBACK", ";END", "BEGIN", "RELEASE x",
                "INSERT OR ROLLBACK INTO t VALUES (1)", "INSERT OR/**/ROLLBACK INTO t VALUES (1)"],
    )  # fmt: skip
    async def test_never_ends_the_transaction(self, writer: Writer, place: Place, sql: str) -> None:
        """This holds however the statement is written, and literals are not mistaken for one."""
        async with writer.transaction() as tx:
            stream = tx.for_author(Author("e"))
            with pytest.raises(ValueError, match="must not begin or end transactions"):
                await stream.execute(sql)
            with pytest.raises(ValueError, match="must not begin or end transactions"):
                await stream.fetch_all(sql)
            await stream.execute("INSERT INTO t VALUES ('this OR ROLLBACK')")

        assert rows(place, VALUES) == [("this OR ROLLBACK",)]


class TestAStatementThatFails:
    async def test_keeps_those_behind_it_from_running(self, writer: Writer, place: Place) -> None:
        """They are one call, and the transaction commits nothing even if the error is caught."""

        async def write() -> None:
            async with writer.transaction() as tx:
                tx.add(INSERT, [("a",), ("a",)])
                tx.add(INSERT, [("b",)])
                with pytest.raises(Refused, match=UNIQUE):
                    await tx.fetch_all(VALUES)

        with pytest.raises(Refused, match=UNIQUE):
            await write()

        assert rows(place, VALUES) == []


class TestFetch:
    async def test_sees_every_earlier_write(self, writer: Writer, place: Place) -> None:
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
    async def test_undoes_its_block_and_nothing_else(self, writer: Writer, place: Place) -> None:
        """Whether it stands before, after or within others, only the failed block is undone."""
        async with writer.transaction() as tx:
            tx.add(INSERT, [("before",)])
            await tx.flush()
            with pytest.raises(Boom):
                await in_savepoint(tx, "flushed", "waiting", fails=True)
            await in_savepoint(tx, "good")
            tx.add(INSERT, [("after",)])

        assert rows(place, VALUES) == [("after",), ("before",), ("good",)]

    async def test_undoes_those_within_it(self, writer: Writer, place: Place) -> None:
        """After any of them has failed, the transaction goes on where the outer one began."""
        async with writer.transaction() as tx:
            await insert(tx, "before")
            with pytest.raises(Boom):
                await nested(tx)
            await in_savepoint(tx, "good")
            with pytest.raises(HandlersFailed):
                await in_savepoint(tx, "good")
            await insert(tx, "after")

        assert rows(place, VALUES) == [("after",), ("before",), ("good",)]

    async def test_fails_with_a_statement_that_waited(self, writer: Writer, place: Place) -> None:
        """A deferred statement belongs to the block in which it was executed."""
        async with writer.transaction() as tx:
            with pytest.raises(HandlersFailed, match=UNIQUE):
                await in_savepoint(tx, "a", "a")
            tx.add(INSERT, [("b",)])

        assert rows(place, VALUES) == [("b",)]


class TestOrder:
    async def test_of_each_stream_is_kept(self, writer: Writer, place: Place) -> None:
        """Streams may overtake each other; within a stream, the order of the calls is kept."""
        append = "UPDATE t SET v = v || {} WHERE v LIKE ?".format
        async with writer.transaction() as tx:
            for stream in "xyz":
                await tx.for_author(Author(stream)).execute(INSERT, (stream,))
            for stream, letters in [("x", "abba"), ("y", "baab"), ("x", "ab"), ("z", "bbb")]:
                for letter in letters:
                    await tx.for_author(Author(stream)).execute(
                        append(f"'{letter}'"), (f"{stream}%",)
                    )

        assert rows(place, VALUES) == [("xabbaab",), ("ybaab",), ("zbbb",)]
