"""How a database on a server is opened: made, found, or refused."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from tests.builders import planned
from tests.places import change, rows
from tests.postgres import PostgresDatabase
from tests.servers import free_ports
from tests.unit.notebook import notebook, said
from tests.unit.projecting import arrivals, project, projecting_with, verdicts
from worker.errors import StoreUnavailable, StoreUnusable
from worker.store.engines import store_of
from worker.store.postgres import checks, migrations
from worker.store.postgres.address import Address
from worker.store.postgres.store import Writer


@pytest.fixture
async def stranger(
    shared_database: PostgresDatabase, schema: Address
) -> AsyncIterator[tuple[Address, str]]:
    """Return the address of a database for a role that may create nothing in it, and its name."""
    name = f"{schema.schema}_role"
    await shared_database.query(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    node = shared_database.node
    url = f"postgresql://{name}:secret@127.0.0.1:{node.port}/{shared_database.name}"
    yield replace(schema, url=url), name
    await shared_database.query(f"DROP OWNED BY {name} CASCADE")
    await shared_database.query(f"DROP ROLE {name}")


class TestTheFirstStart:
    async def test_makes_the_tables_once(self, schema: Address) -> None:
        """The next start finds them, and the id that was chosen."""
        async with Writer(schema) as first:
            chosen = await first.id()
        async with Writer(schema) as second:
            assert await second.id() == chosen

        assert rows(schema, "SELECT id FROM store") == [(chosen,)]

    async def test_of_several_workers_makes_one_database(self, schema: Address) -> None:
        """They may start at the same moment; none of them fails."""
        writers = [Writer(schema) for _ in range(8)]

        await asyncio.gather(*(writer.open() for writer in writers))
        ids = {await writer.id() for writer in writers}
        await asyncio.gather(*(writer.close() for writer in writers))

        assert len(ids) == 1
        assert rows(schema, "SELECT count(*) FROM store") == [(1,)]

    async def test_needs_no_right_but_to_its_schemas(
        self, stranger: tuple[Address, str], shared_database: PostgresDatabase
    ) -> None:
        """An administrator can make them; the error has the statements."""
        address, role = stranger
        with pytest.raises(StoreUnusable, match=f"role '{role}' may not create") as refused:
            await Writer(address).open()
        statements = refused.value.hint.partition(": ")[2].split("; ")

        for statement in statements:
            await shared_database.query(statement)
        outcomes = await project(address, [planned("e")])

        assert len(statements) == 2
        assert verdicts(outcomes) == ["applied"]

    async def test_upgrades_older_tables(
        self, schema: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Several workers that find them at the same moment upgrade them once."""
        async with Writer(schema) as writer:
            chosen = await writer.id()
        schema_sql = resources.files("worker.store.postgres") / "schema.sql"
        (tmp_path / "schema.sql").write_text(schema_sql.read_text())
        (tmp_path / "second.sql").write_text("ALTER TABLE filler ADD COLUMN more text")
        monkeypatch.setattr(resources, "files", lambda _: tmp_path)
        monkeypatch.setattr(migrations, "SCRIPTS", ("schema.sql", "second.sql"))
        monkeypatch.setattr(migrations, "SCHEMA_VERSION", 2)

        writers = [Writer(schema) for _ in range(4)]
        await asyncio.gather(*(writer.open() for writer in writers))
        await asyncio.gather(*(writer.close() for writer in writers))

        assert rows(schema, "SELECT id, schema_version FROM store") == [(chosen, 2)]


class TestADatabaseWithoutItsLog:
    async def test_is_refused(self, schema: Address) -> None:
        """Nothing could restore its rows."""
        await project(schema, [planned("e")])
        change(schema, "DELETE FROM log")

        async with Writer(schema) as writer:
            with pytest.raises(StoreUnusable, match="The log is empty, but the table"):
                await writer.require_log()

    async def test_is_not_one_to_which_another_worker_has_just_added(
        self, schema: Address, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its first messages may come between two looks of a worker that starts."""
        async with Writer(schema) as writer:
            looks = [writer.is_log_empty]

            async def look() -> bool:
                found = await looks[0]()
                if len(looks) == 1:
                    looks.append(looks[0])
                    await project(schema, [planned("e")])
                return found

            monkeypatch.setattr(writer, "is_log_empty", look)
            await writer.require_log()

    async def test_is_not_one_whose_messages_were_all_rejected(self, schema: Address) -> None:
        """A worker that starts on it again finds nothing lost."""
        outcomes = await project(schema, [said("raised", "e")], registry=notebook())

        async with Writer(schema) as writer:
            await writer.require_log()
        assert verdicts(outcomes) == ["handler_failed"]


class TestARefusal:
    """The error says what is wrong and what to do; the password is never in it."""

    @pytest.mark.parametrize(
        ("change_to", "said"),
        [
            ("CREATE TABLE other (x int)", "not the worker's .* it has 'other'"),
            ("CREATE VIEW log AS SELECT 1", "not the worker's .* it has 'log'"),
        ],
    )
    async def test_of_a_schema_of_another_program(
        self, schema: Address, change_to: str, said: str
    ) -> None:
        """A schema with other tables in it is left alone."""
        change(schema, f"CREATE SCHEMA {schema.schema}; {change_to}")

        with pytest.raises(StoreUnusable, match=said):
            await Writer(schema).open()

    async def test_of_a_newer_database(self, schema: Address) -> None:
        """A release does not touch tables that it does not know."""
        async with Writer(schema):
            change(schema, "UPDATE store SET schema_version = 99")

        for opening in (Writer(schema).__aenter__, store_of(schema).reader().__aenter__):
            with pytest.raises(StoreUnusable, match=r"made by a newer worker .* schema 99"):
                await opening()

    async def test_of_a_schema_that_nobody_has_made(self, schema: Address) -> None:
        """A reader makes nothing."""
        assert not await store_of(schema).exists()
        with pytest.raises(StoreUnusable, match="There is no database of the worker"):
            await store_of(schema).reader().__aenter__()

        async with Writer(schema):
            assert await store_of(schema).exists()

    @pytest.mark.parametrize("setting", ["fsync", "synchronous_commit"])
    async def test_of_a_server_that_may_lose_commits(
        self, schema: Address, monkeypatch: pytest.MonkeyPatch, setting: str
    ) -> None:
        """What it has confirmed must survive a power cut."""
        found = f"current_setting('{setting}')"
        monkeypatch.setattr(checks, "SERVER", checks.SERVER.replace(found, "'off'"))

        with pytest.raises(StoreUnusable, match=f"may lose what it has confirmed .*{setting} is o"):
            await Writer(schema).open()

    async def test_of_asynchronous_commits(
        self, stranger: tuple[Address, str], shared_database: PostgresDatabase
    ) -> None:
        """The setting may come from the role."""
        address, role = stranger
        await shared_database.query(f"ALTER ROLE {role} SET synchronous_commit = off")

        with pytest.raises(StoreUnusable, match="synchronous_commit is off"):
            await Writer(address).open()

    async def test_of_another_encoding(
        self, shared_database: PostgresDatabase, schema: Address
    ) -> None:
        """A database must be able to hold every message."""
        name = f"{schema.schema}_ascii"
        await shared_database.node.query(
            f"CREATE DATABASE {name} OWNER {shared_database.name} TEMPLATE template0"
            " ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'"
        )
        url = schema.url.removesuffix(shared_database.name) + name

        with pytest.raises(StoreUnusable, match="its encoding is SQL_ASCII"):
            await Writer(replace(schema, url=url)).open()

    async def test_of_a_server_that_takes_no_writes(
        self, stranger: tuple[Address, str], shared_database: PostgresDatabase
    ) -> None:
        """It may be a standby that is promoted in a moment, so the worker holds."""
        address, role = stranger
        await shared_database.query(f"ALTER ROLE {role} SET default_transaction_read_only = on")

        with pytest.raises(StoreUnavailable, match="failover may be under way"):
            await Writer(address).open()

    async def test_of_a_password_is_final_only_at_first(
        self, stranger: tuple[Address, str], shared_database: PostgresDatabase
    ) -> None:
        """Later, a password that is being changed is worth waiting for."""
        address, role = stranger
        await shared_database.query(f"CREATE SCHEMA {address.schema} AUTHORIZATION {role}")
        await shared_database.query(f"CREATE SCHEMA {address.rebuild_schema} AUTHORIZATION {role}")
        async with Writer(address) as writer:
            await shared_database.query(f"ALTER ROLE {role} PASSWORD 'other'")
            await shared_database.node.terminate_backends("projection-worker%")
            with pytest.raises(StoreUnavailable, match="28P01"):
                await writer.probe()
            with pytest.raises(StoreUnusable, match="cannot be opened") as refused:
                await Writer(address).open()

        assert "secret" not in f"{refused.value} {refused.value.hint}"

    async def test_of_a_database_that_is_not_there(self, schema: Address) -> None:
        """Waiting does not create it."""
        address = replace(schema, url=f"{schema.url}_nowhere")
        with pytest.raises(StoreUnusable, match=r"cannot be opened .*nowhere.* does not exist"):
            await Writer(address).open()

    async def test_of_no_server_at_all(self, schema: Address) -> None:
        """It may come back."""
        (port,) = free_ports(1)
        address = replace(schema, url=f"postgresql://a:secret@127.0.0.1:{port}/b")

        with pytest.raises(StoreUnavailable, match=f"database b on 127.0.0.1:{port}") as refused:
            await Writer(address).open()

        assert "secret" not in str(refused.value)

    def test_of_a_missing_driver(self, schema: Address, monkeypatch: pytest.MonkeyPatch) -> None:
        """The worker starts without it on a file; for a server, it says what to install."""
        for name in [name for name in sys.modules if name.startswith("worker.store.postgres.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "asyncpg", None)

        with pytest.raises(StoreUnusable, match="driver for PostgreSQL is not installed") as told:
            store_of(schema)

        assert "projection-worker[postgres]" in told.value.hint


class TestANewDatabaseInItsPlace:
    async def test_stops_the_worker(self, schema: Address) -> None:
        """The worker does not write on in a database that somebody has put there meanwhile."""
        writer = Writer(schema)
        async with projecting_with(writer) as projector:
            change(schema, "UPDATE store SET id = 'another'")
            writer._abort()

            with pytest.raises(StoreUnusable, match="leads to another database now"):
                await projector.project(arrivals([planned("e")]))

    async def test_is_not_made_by_a_worker_that_has_lost_it(self, schema: Address) -> None:
        """Tables that are gone must not be taken for those of a first start."""
        writer = Writer(schema)
        async with projecting_with(writer) as projector:
            change(schema, f"DROP SCHEMA {schema.schema} CASCADE")
            writer._abort()

            with pytest.raises(StoreUnusable, match="There is no database of the worker"):
                await projector.project(arrivals([planned("e")]))
