"""What a reader promises of a server: replicas, lost connections, and a role that only reads."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.builders import planned, started
from tests.docs.pages import OPERATE, blocks, section
from tests.postgres import PostgresDatabase, PostgresNode
from tests.postgres_standby import PostgresStandby
from tests.store.test_reader import is_older, older_rows
from tests.unit.projecting import arrivals, project, projecting, rows, shipped
from worker import NotYet, Reader
from worker.errors import StoreUnavailable
from worker.projections.events import get_event
from worker.rebuild import rebuild
from worker.store.engines import store_of
from worker.store.postgres.address import Address

READERS = "projection-worker reader%"
WRITES = (
    "INSERT INTO projections VALUES ('x', 1)",
    "UPDATE events SET status = 'active'",
    "DELETE FROM log",
    "TRUNCATE streams",
    "DROP TABLE kinds",
    "CREATE TABLE others (x text)",
    "CREATE TEMPORARY TABLE others (x text)",
    "SELECT * FROM events FOR UPDATE",
)


@pytest.fixture
async def delayed(
    postgres: PostgresNode, postgres_database: PostgresDatabase
) -> AsyncIterator[Address]:
    """Return the database on a replica that shows each commit a third of a second later."""
    await project(Address(postgres_database.url), [planned("e-first")])
    async with PostgresStandby(postgres, {"recovery_min_apply_delay": "300ms"}) as standby:
        await standby.until_replayed()
        yield Address(postgres_database.url_at(standby))


class TestAReplica:
    async def test_never_returns_a_row_without_the_message(
        self, postgres_database: PostgresDatabase, delayed: Address
    ) -> None:
        """Although it is behind while a worker writes to the primary."""
        primary = Address(postgres_database.url)
        async with projecting(primary) as projector, Reader(delayed) as reader:
            assert await older_rows(reader, projector, is_after=True) == 0

    async def test_is_behind(self, postgres_database: PostgresDatabase, delayed: Address) -> None:
        """What it has is older, so the test above can fail, and so can a wait."""
        primary = Address(postgres_database.url)
        start = started("e-first")
        async with projecting(primary) as projector, Reader(delayed) as reader:
            assert await older_rows(reader, projector, is_after=False) > 0
            await projector.project(arrivals([start]))
            with pytest.raises(NotYet):
                await get_event(reader, "e-first", after=start["id"], within=0)
            row = await get_event(reader, "e-first", after=start["id"], within=60)

        assert not is_older(row, start)


class TestALostConnection:
    async def test_is_opened_again_by_the_next_read(
        self, postgres_database: PostgresDatabase
    ) -> None:
        """A server that ends it costs a reader one read at most."""
        address = Address(postgres_database.url)
        await project(address, [planned("e")])

        async with Reader(address) as reader:
            assert await postgres_database.node.terminate_backends(READERS) >= 1
            try:
                row = await get_event(reader, "e")
            except StoreUnavailable:
                row = await get_event(reader, "e")

        assert row is not None

    async def test_ends_no_wait(
        self, postgres: PostgresNode, postgres_database: PostgresDatabase
    ) -> None:
        """The server comes back within the bound, and then the message comes."""
        address, start = Address(postgres_database.url), started("e")
        await project(address, [planned("e")])

        async with Reader(address) as reader:
            waiting = asyncio.create_task(get_event(reader, "e", after=start["id"], within=60))
            await postgres.stop()
            with pytest.raises(StoreUnavailable):
                await get_event(reader, "e", after=start["id"], within=0)
            await postgres.start()
            await project(address, [start])
            row = await waiting

        assert not is_older(row, start)


class TestARoleThatOnlyReads:
    @pytest.fixture
    async def role(
        self, postgres: PostgresNode, postgres_database: PostgresDatabase
    ) -> AsyncIterator[str]:
        """Make the role as docs/operate.md says, and return its URL."""
        await project(Address(postgres_database.url), [planned("e")])
        name, password = f"reader_{secrets.token_hex(4)}", secrets.token_hex(8)
        (text,) = blocks(section(OPERATE, "### A role that only reads"), "sql")
        text = re.sub(r"\breader\b", name, re.sub(r"\bworker\b", postgres_database.name, text))
        for statement in re.sub("--.*", "", text).split(";")[:-1]:
            await postgres_database.query(statement)
        await postgres.query(f"ALTER ROLE {name} PASSWORD '{password}'")
        parts = urlsplit(postgres_database.url)
        yield f"postgresql://{name}:{password}@127.0.0.1:{parts.port}{parts.path}"
        await postgres.start()
        await postgres_database.query(f"DROP OWNED BY {name}")
        await postgres.query(f"DROP ROLE {name}")

    async def test_reads_everything_also_after_a_rebuild(
        self, role: str, postgres_database: PostgresDatabase
    ) -> None:
        """The rows, the log, and the view of it; also through a reader that is open already."""
        address, start = Address(postgres_database.url), started("e")
        store = store_of(address)

        async with Reader(role) as reader:
            before = await get_event(reader, "e")
            async with store.writer(store.lock()) as writer:
                await rebuild(writer, shipped(), lambda *_: None)
            await project(address, [start])
            after = await get_event(reader, "e", after=start["id"])
        logged = rows(Address(role), "SELECT id FROM messages")

        assert before is not None
        assert not is_older(after, start)
        assert len(logged) == len(rows(Address(role), "SELECT id FROM log")) == 2

    @pytest.mark.parametrize("write", WRITES)
    async def test_writes_nothing(self, role: str, write: str) -> None:
        """Not even if it asks for a transaction that could."""
        connection = await asyncpg.connect(role, server_settings={"search_path": "projection"})
        try:
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await connection.execute(write)
            if "TEMPORARY" not in write:
                await connection.execute("SET default_transaction_read_only = off")
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(write)
        finally:
            await connection.close()
