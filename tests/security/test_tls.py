"""The broker and the worker prove who they are with certificates of the test's own authority."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
import trustme

from tests.broker.test_addresses import SILENT, resolve, silent
from tests.builders import planned
from tests.database import rows
from tests.oracle import expected_rows
from tests.processes import Line, StartWorker, WorkerProcess
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode, server_program
from tests.servers import free_ports
from worker.broker.commands import reach
from worker.broker.connection import BrokerAddress
from worker.errors import BrokerRefused

LISTENER = """\
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {folder}/ca.pem
ssl_options.certfile = {folder}/broker.pem
ssl_options.keyfile = {folder}/broker.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""


@dataclass
class Place:
    """A broker that requires certificates, and the files with the right ones."""

    node: RabbitMQNode
    port: int
    folder: Path

    def url(self, host: str = "localhost") -> str:
        """Return the address to which a worker connects."""
        return f"amqps://guest:guest@{host}:{self.port}/"

    @property
    def proofs(self) -> dict[str, object]:
        """Return the worker's settings for certificates."""
        return {
            "amqp_ca_file": self.folder / "ca.pem",
            "amqp_certificate_file": self.folder / "worker.pem",
            "amqp_key_file": self.folder / "worker.key",
        }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    if server_program() is None and "CI" not in os.environ:
        pytest.skip("RabbitMQ is not installed; `make setup` installs it")
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, host in (("broker", "localhost"), ("worker", "worker.test")):
        issued = authority.issue_cert(host)
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
    (port,) = free_ports(1)
    async with RabbitMQNode(LISTENER.format(port=port, folder=folder)) as node:
        yield Place(node, port, folder)


@pytest.fixture
def node(place: Place) -> RabbitMQNode:
    """Return the same broker, reached without TLS."""
    return place.node


class TestABrokerWithTLS:
    async def test_is_consumed_from_with_the_right_proofs(
        self, queues: Queues, database: Path, place: Place, start_worker: StartWorker
    ) -> None:
        """The worker knows the broker's authority, and the broker the worker's certificate."""
        worker = await start_worker(amqp_url=place.url(), **place.proofs)
        await worker.wait_for_log("connected")

        await queues.publish([only := planned("e-1")])
        await worker.wait_until_settled(1)

        assert rows(database) == expected_rows([only])

    async def test_is_reached_where_its_first_address_is_silent(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The certificate is for the name, whichever of its addresses answers."""
        resolve(monkeypatch, SILENT, "127.0.0.1", name="localhost")
        files = [Path(str(file)) for file in place.proofs.values()]

        with ExitStack() as stack:
            silent(stack, place.port, swallows=False)
            await reach(BrokerAddress((place.url(),), *files))

    async def test_gets_no_worker_without_a_certificate_that_it_asks_for(
        self, place: Place, start_worker: StartWorker
    ) -> None:
        """The broker refuses a worker that proves nothing."""
        worker = await start_worker(amqp_url=place.url(), amqp_ca_file=place.proofs["amqp_ca_file"])

        await never_connects(worker)

    async def test_under_another_name_is_not_trusted(
        self, place: Place, start_worker: StartWorker
    ) -> None:
        """Its certificate is for localhost, and the worker connects to an IP address."""
        worker = await start_worker(amqp_url=place.url("127.0.0.1"), **place.proofs)

        line = await never_connects(worker)

        assert "certificate" in line["reason"]
        assert "certificate" in line["hint"]

    async def test_is_trusted_as_soon_as_its_authority_is_known(
        self, place: Place, tmp_path: Path, start_worker: StartWorker
    ) -> None:
        """A renewed file is read at the next connection, without a restart."""
        renewed = tmp_path / "renewed.pem"
        trustme.CA().cert_pem.write_to_path(renewed)
        worker = await start_worker(
            amqp_url=place.url(), **(place.proofs | {"amqp_ca_file": renewed})
        )
        await never_connects(worker)

        renewed.write_bytes((place.folder / "ca.pem").read_bytes())

        await worker.wait_for_log("connected")

    async def test_is_asked_nothing_with_files_that_are_not_there(
        self, place: Place, tmp_path: Path, start_worker: StartWorker
    ) -> None:
        """The start fails, and names the file and the settings."""
        missing = tmp_path / "missing.pem"

        worker = await start_worker(
            amqp_url=place.url(), **(place.proofs | {"amqp_ca_file": missing})
        )

        assert await worker.exit_code() == 1
        (line,) = worker.said("failed")
        assert str(missing) in line["reason"]
        assert "WORKER_AMQP_CA_FILE" in line["hint"]


async def never_connects(worker: WorkerProcess) -> Line:
    """Wait until the worker has tried again; return the line that says why it cannot connect."""
    await worker.wait_for_log("connection_failed")
    (line,) = worker.said("connection_lost")
    assert worker.said("connected") == []
    return line


@asynccontextmanager
async def impostor(certificate: trustme.LeafCert) -> AsyncIterator[int]:
    """Serve TLS with a certificate on the given port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


class TestAnImpostor:
    @pytest.mark.parametrize("flaw", ["expired", "of an unknown authority"])
    async def test_is_told_nothing(
        self, tmp_path: Path, flaw: str, start_worker: StartWorker
    ) -> None:
        """The worker sends no password before it has verified the certificate."""
        known = trustme.CA()
        known.cert_pem.write_to_path(tmp_path / "ca.pem")
        if flaw == "expired":
            yesterday = datetime.now(UTC) - timedelta(days=1)
            certificate = known.issue_cert("localhost", not_after=yesterday)
        else:
            certificate = trustme.CA().issue_cert("localhost")

        async with impostor(certificate) as port:
            worker = await start_worker(
                amqp_url=f"amqps://guest:guest@localhost:{port}/",
                amqp_ca_file=tmp_path / "ca.pem",
            )
            line = await never_connects(worker)

        assert "certificate" in line["reason"]


class TestTheContext:
    def test_verifies_and_takes_no_old_protocol(self) -> None:
        """TLS 1.2 or newer, the name in the certificate and a known authority are required."""
        context = BrokerAddress(("amqps://localhost/",)).tls()

        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2

    def test_names_the_files_that_cannot_be_used(self, tmp_path: Path) -> None:
        """The certificate file contains no certificate."""
        broken = tmp_path / "broken.pem"
        broken.write_text("no certificate")

        with pytest.raises(BrokerRefused, match=r"broken\.pem"):
            BrokerAddress(("amqps://localhost/",), certificate_file=broken).tls()
