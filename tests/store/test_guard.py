import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.projecting import rows
from worker.store.failures import Author, HandlersFailed
from worker.store.sqlite.store import Writer
from worker.store.tables import RESERVED


@pytest.fixture
async def writer(tmp_path: Path) -> AsyncIterator[Writer]:
    async with Writer(tmp_path / "p.db") as opened:
        async with opened.transaction() as tx:
            await tx.run("CREATE TABLE t (event_id TEXT, v TEXT)")
        yield opened


async def execute(writer: Writer, sql: str) -> None:
    async with writer.transaction() as tx:
        await tx.for_author(Author("e")).execute(sql)


class TestAHandlersStatement:
    @pytest.mark.parametrize("table", sorted(RESERVED - {"messages", "store", "consumption"}))
    async def test_writes_no_table_of_the_worker(self, writer: Writer, table: str) -> None:
        """This holds however the name is written; the store itself may write them."""
        for name in (table, f'"{table.upper()}"', f"main.[{table}]"):
            with pytest.raises(HandlersFailed, match="may only read, and write rows"):
                await execute(writer, f"DELETE FROM {name}")

        async with writer.transaction() as tx:
            await tx.run(f"DELETE FROM {table} WHERE FALSE")

    @pytest.mark.parametrize(
        "sql", ["CREATE TABLE x (y)", "DROP TABLE t", "ALTER TABLE t RENAME TO u", "ANALYZE",
                "PRAGMA user_version = 9", "ATTACH ':memory:' AS other"],
    )  # fmt: skip
    async def test_defines_nothing(self, writer: Writer, sql: str) -> None:
        """Only the projections define tables, and the start creates them."""
        before = rows(Path(writer.path), "SELECT * FROM sqlite_schema")

        with pytest.raises(HandlersFailed):
            await execute(writer, sql)

        assert rows(Path(writer.path), "SELECT * FROM sqlite_schema") == before

    async def test_reads_all_and_writes_its_rows(self, writer: Writer) -> None:
        """Any SQL will do, in a query as well, even if a text looks like another statement."""
        async with writer.transaction() as tx:
            stream = tx.for_author(Author("e"))
            await stream.execute("INSERT INTO t VALUES ('e', 'DELETE FROM log')")
            await stream.fetch_all("UPDATE t SET v = v || count FROM (SELECT count(*) AS count "
                                   "FROM log) RETURNING v")  # fmt: skip
            await stream.execute(
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3) "
                "INSERT INTO t SELECT 'e', x FROM n"
            )

        assert len(rows(Path(writer.path), "SELECT * FROM t")) == 4

    async def test_may_be_the_cause_of_a_trigger(self, writer: Writer) -> None:
        """A user's trigger may write the user's table, but none of the worker's."""
        async with writer.transaction() as tx:
            await tx.run("CREATE TABLE audit (v)")
            await tx.run(
                "CREATE TRIGGER a AFTER INSERT ON t BEGIN INSERT INTO audit VALUES (1); END"
            )
        await execute(writer, "INSERT INTO t VALUES ('e', 'x')")
        async with writer.transaction() as tx:
            await tx.run("CREATE TRIGGER b AFTER INSERT ON t BEGIN DELETE FROM log; END")

        with pytest.raises(HandlersFailed, match="may only read"):
            await execute(writer, "INSERT INTO t VALUES ('e', 'x')")

        assert rows(Path(writer.path), "SELECT * FROM audit") == [(1,)]


class TestOneCall:
    async def test_finds_all_streams_that_fail(self, writer: Writer) -> None:
        """Each failing stream is reported with its first failure, even for a shared statement."""
        async with writer.transaction() as tx:
            await tx.run("CREATE UNIQUE INDEX one ON t (v)")

        async def write() -> None:
            async with writer.transaction() as tx:
                for stream, value in [("a", "1"), ("b", "1"), ("c", "2"), ("d", "1"), ("d", "2")]:
                    await tx.for_author(Author(stream)).execute(
                        "INSERT INTO t VALUES ('e', ?)", (value,)
                    )
                for stream in ("x", "y"):
                    await tx.for_author(Author(stream)).execute("INSERT INTO nowhere VALUES (1)")

        with pytest.raises(HandlersFailed) as failed:
            await write()

        assert sorted(failed.value.failures) == ["b", "d", "x", "y"]
        assert isinstance(failed.value.failures["d"].error, sqlite3.IntegrityError)
        assert rows(Path(writer.path), "SELECT * FROM t") == []

    async def test_lets_other_streams_read_on(self, writer: Writer) -> None:
        """One stream reads correct rows although another stream's statement has failed."""
        async with writer.transaction() as tx:
            await tx.for_author(Author("a")).execute("INSERT INTO nowhere VALUES (1)")
            await tx.for_author(Author("b")).execute("INSERT INTO t VALUES ('b', 'x')")
            found = await tx.for_author(Author("b")).fetch_one("SELECT v FROM t")
            with pytest.raises(sqlite3.OperationalError, match="nowhere"):
                await tx.for_author(Author("a")).fetch_one("SELECT v FROM t")
            tx.forget()

        assert found is not None
        assert found["v"] == "x"
