from collections.abc import AsyncIterator

import pytest

from tests.places import change, rows, writer_at
from worker.store.database import Writer
from worker.store.failures import Author, HandlersFailed
from worker.store.postgres.address import Address
from worker.store.tables import RESERVED

REFUSED = "may only read, and write rows"


@pytest.fixture
async def writer(address: Address) -> AsyncIterator[Writer]:
    async with writer_at(address) as opened:
        for schema in (address.schema, address.rebuild_schema):
            change(address, f"CREATE TABLE {schema}.t (event_id text, v text)")
        yield opened


async def execute(writer: Writer, sql: str) -> None:
    async with writer.transaction() as tx:
        await tx.for_author(Author("e")).execute(sql)


class TestAHandlersStatementOnAServer:
    @pytest.mark.parametrize("table", sorted(RESERVED - {"messages", "file"}))
    async def test_writes_no_table_of_the_worker(
        self, address: Address, writer: Writer, table: str
    ) -> None:
        """This holds however the name is written, and within a larger statement."""
        for name in (table, f'"{table}"', f"{address.schema}.{table}"):
            with pytest.raises(HandlersFailed, match=REFUSED):
                await execute(writer, f"DELETE FROM {name}")
        with pytest.raises(HandlersFailed, match=REFUSED):
            await execute(
                writer,
                f"WITH gone AS (DELETE FROM {table} RETURNING 1) "
                "INSERT INTO t SELECT 'e', '' FROM gone",
            )

    async def test_writes_nothing_in_another_schema(self, address: Address, writer: Writer) -> None:
        """A rebuild's tables are the rebuild's alone."""
        with pytest.raises(HandlersFailed, match=REFUSED):
            await execute(writer, f"INSERT INTO {address.rebuild_schema}.t VALUES ('e', 'x')")

        assert rows(address, f"SELECT * FROM {address.rebuild_schema}.t") == []

    @pytest.mark.parametrize(
        "sql", ["CREATE TABLE x (y int)", "CREATE TABLE x AS SELECT 1 AS y", "DROP TABLE t",
                "SELECT 1 AS y INTO x", "TRUNCATE t", "ANALYZE", "SET search_path = public",
                "LOCK TABLE t", "SELECT 1 FROM t FOR UPDATE", "NOTIFY somebody"],
    )  # fmt: skip
    async def test_defines_and_locks_nothing(
        self, address: Address, writer: Writer, sql: str
    ) -> None:
        """Its row is the only thing that a handler changes."""
        change(address, f"INSERT INTO {address.schema}.t VALUES ('e', 'x')")

        with pytest.raises(HandlersFailed, match=REFUSED):
            await execute(writer, sql)

        assert rows(address, f"SELECT * FROM {address.schema}.t") == [("e", "x")]
        assert rows(address, "SELECT 1 FROM pg_class WHERE relname = 'x'") == []

    async def test_reads_all_and_writes_its_rows(self, address: Address, writer: Writer) -> None:
        """Any SQL will do, in a query as well, even if a text looks like another statement."""
        async with writer.transaction() as tx:
            stream = tx.for_author(Author("e"))
            await stream.execute("INSERT INTO t VALUES ('e', 'DELETE FROM log')")
            found = await stream.fetch_all(
                "UPDATE t SET v = v || (SELECT count(*) FROM log) WHERE event_id = ? RETURNING v",
                ("e",),
            )

        assert [row["v"] for row in found] == ["DELETE FROM log0"]
        assert rows(address, f"SELECT * FROM {address.schema}.t") == [("e", "DELETE FROM log0")]
