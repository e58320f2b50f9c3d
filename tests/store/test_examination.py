"""What `check` finds on a PostgreSQL server; tests/cli/test_check.py has files."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import trustme

from tests.broker.test_addresses import resolve
from tests.places import writer_at
from tests.postgres import PostgresDatabase, PostgresNode
from tests.postgres_standby import PostgresStandby
from worker.errors import StoreUnusable
from worker.store.database import Database
from worker.store.engines import store_of
from worker.store.findings import Content, Finding
from worker.store.postgres.address import Address

ELSEWHERE = "database.test"
SUBJECTS = ["database", "server", "durability", "rights", "tls", "replication", "connections"]
LATIN = (
    "CREATE DATABASE {0} OWNER {1} TEMPLATE template0 ENCODING 'LATIN1'"
    " LOCALE 'C' LOCALE_PROVIDER libc"
)
SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'projection%'"


async def nothing(_: Database) -> None:
    """Find nothing wrong in what is in the database."""


async def is_on_a_standby(reader: Database) -> str | None:
    """Find the content of a standby wrong, on which no schema could be tried."""
    [(is_standby,)] = await reader.fetch_all("SELECT pg_is_in_recovery()")
    return "it is a standby" if is_standby else None


async def examined(address: Address, content: Content = nothing) -> dict[str, Finding]:
    """Return subject -> finding; a finding that is not ok says what to do."""
    found = await store_of(address).examine(content)
    assert all(each.fix for each in found if each.verdict != "ok")
    return {each.subject: each for each in found}


def wrong(found: dict[str, Finding]) -> dict[str, str]:
    """Return the verdicts that are not ok."""
    return {subject: each.verdict for subject, each in found.items() if each.verdict != "ok"}


@pytest.fixture
def address(postgres_database: PostgresDatabase) -> Address:
    return Address(postgres_database.url)


@pytest.fixture
async def made(address: Address) -> Address:
    """Return the address of a database that a worker has made."""
    async with writer_at(address):
        return address


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def careless(postgres_programs: Path) -> AsyncIterator[PostgresNode]:
    """Yield a node that does not wait for its disk."""
    async with PostgresNode({"fsync": "off", "full_page_writes": "off"}) as node:
        yield node


class TestADatabase:
    """Its content is looked at by whoever knows the projections."""

    async def test_that_is_as_it_should_be(self, made: Address) -> None:
        """Everything is ok, and the database is named without its password."""
        found = await examined(made)

        assert list(found) == SUBJECTS
        assert wrong(found) == {}
        assert made.named in found["database"].found

    async def test_that_nobody_has_made_stays_so(
        self, address: Address, postgres_database: PostgresDatabase
    ) -> None:
        """A check makes no schema."""
        found = await examined(address)

        assert wrong(found) == {"database": "warn"}
        assert "creates" in (found["database"].fix or "")
        assert await postgres_database.query(SCHEMAS) == []

    async def test_whose_rows_are_of_another_version(self, made: Address) -> None:
        """The start will rebuild it, which is no fault."""

        async def reason(_: Database) -> str:
            return "of version 1"

        database, *_ = await store_of(made).examine(reason)

        assert (database.verdict, "of version 1" in database.found) == ("warn", True)

    async def test_whose_content_a_start_would_refuse(self, made: Address) -> None:
        """The other lines are there all the same."""

        async def refuse(_: Database) -> None:
            raise StoreUnusable("It is refused.", "do this.")

        found = await store_of(made).examine(refuse)

        assert found[0] == Finding("FAIL", "database", "It is refused.", "do this.")
        assert [each.verdict for each in found[1:]] == ["ok"] * (len(SUBJECTS) - 1)

    @pytest.mark.parametrize(("version", "verdict"), [(0, "warn"), (99, "FAIL")])
    async def test_with_another_schema(
        self, made: Address, postgres_database: PostgresDatabase, version: int, verdict: str
    ) -> None:
        """A start upgrades an older one, and refuses a newer one."""
        await postgres_database.query("UPDATE projection.store SET schema_version = $1", version)

        assert wrong(await examined(made)) == {"database": verdict}

    async def test_that_does_not_answer(self, address: Address) -> None:
        """There is one line, because nothing else is known."""
        found = await examined(replace(address, url=f"{address.url}_elsewhere"))

        assert list(found) == ["database"]
        assert found["database"].verdict == "FAIL"


class TestAServer:
    """What it keeps, and whether it keeps what it has confirmed."""

    async def test_of_another_encoding(self, postgres_database: PostgresDatabase) -> None:
        """It could not keep every message."""
        owner, name = postgres_database.name, f"{postgres_database.name}_latin"
        await postgres_database.query(LATIN.format(name, owner))
        url = postgres_database.url.removesuffix(owner) + name

        found = await examined(Address(url))

        await postgres_database.query(f"DROP DATABASE {name} WITH (FORCE)")
        assert found["server"].verdict == "FAIL"
        assert "LATIN1" in found["server"].found

    async def test_that_does_not_wait_for_the_disk_for_this_role(
        self, made: Address, postgres_database: PostgresDatabase
    ) -> None:
        """Acked messages would be missing after a crash."""
        await postgres_database.query(
            f"ALTER ROLE {postgres_database.name} SET synchronous_commit = off"
        )

        found = await examined(made)

        assert found["durability"].verdict == "FAIL"
        assert "synchronous_commit" in found["durability"].found

    async def test_that_never_waits_for_the_disk(self, careless: PostgresNode) -> None:
        """Each of the two settings has its own verdict."""
        database = await careless.create_database()
        first = await examined(Address(database.url))
        await careless.query("ALTER SYSTEM SET fsync = on")
        await careless.restart()

        second = await examined(Address(database.url))

        assert (first["durability"].verdict, second["durability"].verdict) == ("FAIL", "warn")
        assert "fsync" in first["durability"].found
        assert "full_page_writes" in second["durability"].found

    async def test_with_few_connections_left(
        self, made: Address, postgres_database: PostgresDatabase
    ) -> None:
        """Of all limits, the lowest counts."""
        await postgres_database.query(f"ALTER ROLE {postgres_database.name} CONNECTION LIMIT 4")
        of_role = await examined(made)
        await postgres_database.query(f"ALTER ROLE {postgres_database.name} CONNECTION LIMIT -1")
        await postgres_database.query(f"ALTER DATABASE {postgres_database.name} CONNECTION LIMIT 4")

        of_database = await examined(made)

        assert wrong(of_role) == wrong(of_database) == {"connections": "warn"}


class TestRights:
    """What is missing is named, with the statements that an administrator runs."""

    @pytest.mark.parametrize(
        ("takes", "named"),
        [
            ("DROP SCHEMA projection_rebuild; REVOKE ALL ON DATABASE {0} FROM {0}", "schema"),
            ("ALTER SCHEMA projection OWNER TO postgres", "projection"),
            ("ALTER SCHEMA projection_rebuild OWNER TO postgres", "projection_rebuild"),
            ("ALTER TABLE projection.kinds OWNER TO postgres", "projection.kinds"),
            ("REVOKE TEMPORARY ON DATABASE {0} FROM PUBLIC, {0}", "try"),
        ],
    )
    async def test_that_are_missing(
        self, made: Address, postgres_database: PostgresDatabase, takes: str, named: str
    ) -> None:
        """The statements do as they say: afterwards nothing is missing."""
        name = postgres_database.name
        await postgres_database.query(f"ALTER DATABASE {name} OWNER TO postgres")
        await postgres_database.query(f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO {name}")
        for statement in takes.format(name).split("; "):
            await postgres_database.query(statement)

        found = await examined(made)

        assert found["rights"].verdict == "FAIL"
        assert named in found["rights"].found
        statements = (found["rights"].fix or "").partition(": ")[2]
        for statement in statements.split("; "):
            await postgres_database.query(statement)
        assert wrong(await examined(made)) == {}

    async def test_of_a_role_that_may_make_no_schema(
        self, address: Address, postgres_database: PostgresDatabase
    ) -> None:
        """Once an administrator has made them, a worker can start."""
        await postgres_database.query(f"ALTER DATABASE {postgres_database.name} OWNER TO postgres")
        found = await examined(address)

        statements = (found["rights"].fix or "").partition(": ")[2]
        for statement in statements.split("; "):
            await postgres_database.query(statement)

        assert statements.count("AUTHORIZATION") == 2
        async with writer_at(address):
            assert wrong(await examined(address)) == {}


class TestTls:
    """It is used and verified, unless the settings say otherwise."""

    async def test_of_a_server_that_has_none(
        self, made: Address, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On this machine nothing is missing; to another one, all could be read on the way."""
        resolve(monkeypatch, "127.0.0.1", name=ELSEWHERE)
        url = made.url.replace("127.0.0.1", ELSEWHERE)

        found = await examined(replace(made, url=url, allow_plain_text=True))

        assert found["tls"].verdict == "warn"
        assert "unencrypted" in found["tls"].found
        assert (await examined(made))["tls"].verdict == "ok"

    async def test_of_a_server_that_has_it(
        self, postgres_programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It says whether the certificate is verified."""
        authority, ca_file = trustme.CA(), tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(ca_file))
        async with PostgresNode(certificate=authority.issue_cert(ELSEWHERE)) as node:
            database = await node.create_database()
            resolve(monkeypatch, "127.0.0.1", name=ELSEWHERE)
            url = database.url_at(node, ELSEWHERE)
            verified = await examined(Address(url, ca_file=ca_file))
            unverified = await examined(Address(url, allow_plain_text=True))

        assert verified["tls"].verdict == "ok"
        assert "verified" in verified["tls"].found
        assert unverified["tls"].verdict == "warn"
        assert "pretend" in unverified["tls"].found


class TestAStandby:
    """A commit that it lacks is lost when it is promoted."""

    async def test_is_told_from_one_that_commits_wait_for(self, postgres_programs: Path) -> None:
        """It takes no writes itself; and without it, commits wait for ever."""
        async with PostgresNode() as primary:
            database = await primary.create_database()
            address = Address(database.url)
            async with writer_at(address):
                pass
            async with PostgresStandby(primary) as standby:
                asynchronous = (await examined(address))["replication"]
                itself = await examined(Address(database.url_at(standby)))
                both = Address(
                    f"{database.url_at(standby)}".replace(
                        f"127.0.0.1:{standby.port}",
                        f"127.0.0.1:{standby.port},127.0.0.1:{primary.port}",
                    )
                )
                through_both = wrong(await examined(both, is_on_a_standby))
                await primary.query(
                    f"""ALTER SYSTEM SET synchronous_standby_names = '"{standby.name}"'"""
                )
                await primary.query("SELECT pg_reload_conf()")
                synchronous = (await examined(address))["replication"]
                await primary.query(f"ALTER ROLE {database.name} SET synchronous_commit = local")
                local = (await examined(address))["replication"]
                await primary.query(f"ALTER ROLE {database.name} RESET synchronous_commit")
                name = standby.name
            alone = (await examined(address))["replication"]

        assert (asynchronous.verdict, name in asynchronous.found) == ("warn", True)
        assert through_both == {"replication": "warn"}
        assert (synchronous.verdict, name in synchronous.found) == ("ok", True)
        assert (local.verdict, "local" in local.found) == ("warn", True)
        assert (alone.verdict, "no standby" in alone.found) == ("warn", True)
        assert {subject: each.verdict for subject, each in itself.items()} == {"database": "FAIL"}
        assert "standby" in itself["database"].found
