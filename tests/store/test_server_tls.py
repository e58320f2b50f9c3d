"""Who is trusted on the way to a server."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import trustme

from tests.postgres import PostgresDatabase, PostgresNode
from worker.errors import StoreUnusable
from worker.store.postgres.address import Address
from worker.store.postgres.store import Writer

pytestmark = pytest.mark.asyncio(loop_scope="module")

ELSEWHERE = "postgresql://u:p@db.example.org/d"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def encrypting(
    authority: trustme.CA, postgres_programs: Path
) -> AsyncIterator[PostgresDatabase]:
    """Return a database on a node that accepts no connection without TLS."""
    async with PostgresNode(certificate=authority.issue_cert("127.0.0.1")) as node:
        yield await node.create_database()


class TestTheWayToAServer:
    async def test_is_verified_with_the_authority_that_is_named(
        self, encrypting: PostgresDatabase, authority: trustme.CA, tmp_path: Path
    ) -> None:
        """Another authority's certificate is not accepted, and neither is another host's name."""
        ours, others = tmp_path / "ours.pem", tmp_path / "others.pem"
        authority.cert_pem.write_to_path(str(ours))
        trustme.CA().cert_pem.write_to_path(str(others))
        address = Address(encrypting.url, ca_file=ours)

        async with Writer(address) as writer:
            ((is_encrypted,),) = await writer.fetch_all(
                "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            )
        assert is_encrypted
        with pytest.raises(StoreUnusable, match="certificate verify failed") as refused:
            await Writer(replace(address, ca_file=others)).open()
        assert "WORKER_DATABASE_CA_FILE" in refused.value.hint
        by_name = address.url.replace("127.0.0.1", "localhost")
        with pytest.raises(StoreUnusable, match="not valid for 'localhost'"):
            await Writer(replace(address, url=by_name)).open()

    async def test_may_be_plain_on_this_machine(
        self, encrypting: PostgresDatabase, postgres_database: PostgresDatabase
    ) -> None:
        """Without an authority, TLS is used on the loopback if the server offers it."""
        for database in (encrypting, postgres_database):
            async with Writer(Address(database.url)) as writer:
                await writer.probe()

    @pytest.mark.parametrize(
        ("url", "is_verified"),
        [
            (ELSEWHERE, True),
            ("postgresql://u@10.0.0.1/d", True),
            ("postgresql://u@localhost,db.example.org/d", True),
            ("postgresql://u@localhost:5433/d", False),
            ("postgresql://u@127.0.0.2/d", False),
            ("postgresql://u@[::1]:5432/d", False),
            ("postgresql:///d?host=/run/postgresql", False),
        ],
    )
    async def test_to_another_machine_is_verified(self, url: str, *, is_verified: bool) -> None:
        """Plain text to another machine must be allowed."""
        assert (Address(url).tls() is not None) == is_verified
        assert Address(url, allow_plain_text=True).tls() is None

    async def test_is_refused_without_the_file_of_the_authority(self, tmp_path: Path) -> None:
        """The error names the file."""
        with pytest.raises(StoreUnusable, match=r"missing\.pem"):
            Address(ELSEWHERE, ca_file=tmp_path / "missing.pem").tls()


class TestSeveralHosts:
    async def test_are_tried_in_turn(
        self, postgres_database: PostgresDatabase, postgres: PostgresNode
    ) -> None:
        """The one that takes writes is found."""
        url = postgres_database.url.replace("127.0.0.1:", "127.0.0.1:1,127.0.0.1:")

        async with Writer(Address(url)) as writer:
            await writer.probe()
