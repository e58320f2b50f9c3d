"""The roles that deploy/postgres/make-roles.sh makes, as the container of PostgreSQL runs it."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from tests.builders import planned, started
from tests.oracle import expected_rows
from tests.places import rows, writer_at
from tests.postgres import PostgresDatabase, PostgresNode
from tests.unit.projecting import arrivals
from worker import Reader
from worker.projections import load
from worker.projections.events import get_event
from worker.projector import Projector
from worker.rebuild import create_tables, rebuild
from worker.store.engines import store_of
from worker.store.postgres.address import Address

SCRIPT = Path(__file__).parents[2] / "deploy" / "postgres" / "make-roles.sh"
PASSWORDS = {"worker": "w'0rker", "reader": 'r"eader'}
WRITES = [
    "INSERT INTO projection.kinds VALUES ('x')",
    "UPDATE projection.events SET status = 'x'",
    "DELETE FROM projection.log",
    "TRUNCATE projection.events",
    "CREATE TABLE projection.x (y bigint)",
    "DROP VIEW projection.messages",
    "CREATE SCHEMA x",
    "CREATE TABLE projection_rebuild.x (y bigint)",
]


@dataclass(frozen=True)
class Roles:
    """A database with the two roles."""

    worker: Address
    reader: asyncpg.Connection
    reader_url: str


@pytest.fixture
async def roles(
    postgres: PostgresNode, postgres_database: PostgresDatabase, postgres_programs: Path
) -> AsyncIterator[Roles]:
    """Run the script in a fresh database, and take the roles away afterwards."""
    name = postgres_database.name
    environment = {
        "PATH": f"{postgres_programs}:/usr/bin:/bin",
        "PGHOST": str(postgres.folder),
        "PGPORT": str(postgres.port),
        "POSTGRES_USER": "postgres",
        "POSTGRES_DB": name,
        **{f"{role.upper()}_PASSWORD": password for role, password in PASSWORDS.items()},
    }
    command = ("sh", str(SCRIPT))
    await asyncio.to_thread(
        subprocess.run, command, env=environment, check=True, capture_output=True
    )
    place = f"127.0.0.1:{postgres.port}/{name}"
    worker = Address(f"postgresql://worker:w%270rker@{place}")
    reader_url = f"postgresql://reader:r%22eader@{place}"
    reader = await asyncpg.connect(reader_url)
    try:
        yield Roles(worker, reader, reader_url)
    finally:
        await reader.close()
        for role in PASSWORDS:
            await postgres_database.query(f"DROP OWNED BY {role} CASCADE")
            await postgres_database.query(f"DROP ROLE {role}")


class TestTheRoles:
    """The one may do all that a worker needs, and the other may read."""

    async def test_let_a_worker_start_and_readers_read(self, roles: Roles) -> None:
        """Also after a rebuild, which makes all tables anew."""
        registry, history = load(), [planned("e-1"), started("e-1")]
        async with writer_at(roles.worker) as writer:
            await create_tables(writer, registry)
            await Projector(registry, writer).project(arrivals(history))
            before = await _read(roles)

            await rebuild(writer, registry, lambda done, total: None)

            assert await _read(roles) == before == ("active", 2)
        assert rows(roles.worker, "SELECT count(*) FROM events") == [(len(expected_rows(history)),)]

    @pytest.mark.parametrize("is_rebuilt", [False, True])
    async def test_let_readers_write_nothing(self, roles: Roles, *, is_rebuilt: bool) -> None:
        """Even one that switches off what its role has as a default."""
        async with writer_at(roles.worker) as writer:
            await create_tables(writer, load())
            if is_rebuilt:
                await rebuild(writer, load(), lambda done, total: None)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await roles.reader.execute(WRITES[0])
        await roles.reader.execute("SET default_transaction_read_only = off")

        for statement in WRITES:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await roles.reader.execute(statement)

    async def test_pass_the_check(self, roles: Roles) -> None:
        """Before and after the first start; the worker may make no other schema."""
        store = store_of(roles.worker)
        first = await store.examine(_nothing)
        async with writer_at(roles.worker):
            pass

        second = await store.examine(_nothing)

        assert [each.subject for each in first if each.verdict != "ok"] == ["database"]
        assert [each.subject for each in second if each.verdict != "ok"] == []


async def _nothing(_: object) -> None:
    """Find nothing wrong in what is in the database."""


async def _read(roles: Roles) -> tuple[str, int]:
    """Return, as the reader, the status of the event, and the number of messages."""
    async with Reader(roles.reader_url) as reader:
        event = await get_event(reader, "e-1")
        [(messages,)] = await reader.fetch_all("SELECT count(*) FROM messages")
    assert event is not None
    return event["status"], messages
