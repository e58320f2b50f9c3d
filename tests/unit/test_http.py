import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.waiting import eventually, patience
from worker.errors import HealthUnavailable
from worker.telemetry import http as served
from worker.telemetry.health import LOOP_SECONDS, Facts, State
from worker.telemetry.http import MAX_CONNECTIONS, HealthServer
from worker.telemetry.metrics import Metrics

Response = tuple[int, dict[str, str], bytes]


@pytest.fixture
def facts() -> Facts:
    return Facts(State.CONSUMING)


def server_of(facts: Facts, host: str = "127.0.0.1", port: int = 0) -> HealthServer:
    return HealthServer(host, port, facts, Metrics(facts, sqlite_version="3"))


@pytest_asyncio.fixture
async def server(facts: Facts) -> AsyncIterator[HealthServer]:
    async with server_of(facts) as server:
        yield server


def connect(server: HealthServer) -> socket.socket:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), patience())


def ask(server: HealthServer, path: str, method: str = "GET") -> Response:
    """Send a request as any client would."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=patience())
    try:
        connection.putrequest(method, path)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


async def get(server: HealthServer, path: str, method: str = "GET") -> Response:
    return await asyncio.to_thread(ask, server, path, method)


def exchange(server: HealthServer, sent: bytes) -> bytes:
    """Send bytes unchanged; return what arrives until the server closes the connection."""
    with connect(server) as client:
        return _exchange(client, sent)


def _exchange(client: socket.socket, sent: bytes) -> bytes:
    received = b""
    try:
        client.sendall(sent)
        while chunk := client.recv(65536):
            received += chunk
    except ConnectionError:
        # Closed before all was sent.
        pass
    return received


class TestAnAnswer:
    async def test_tells_that_the_worker_is_well(self, server: HealthServer) -> None:
        """The answer is 200 with a document that names the state."""
        for path in ("/livez", "/readyz", "/readyz?verbose"):
            status, headers, body = await get(server, path)

            assert status == 200
            assert headers["Content-Type"] == "application/json"
            document = json.loads(body)
            assert document.pop("reason")
            assert document == {"ok": True, "state": "consuming"}

    async def test_tells_why_the_worker_is_not_ready(
        self, facts: Facts, server: HealthServer
    ) -> None:
        """The answer is 503 with the reason, while the worker stays live."""
        facts.state, facts.problem = State.HOLDING, "The disk is full."

        status, _, body = await get(server, "/readyz")

        assert status == 503
        assert "The disk is full." in json.loads(body)["reason"]
        assert (await get(server, "/livez"))[0] == 200

    async def test_gives_the_metrics(self, server: HealthServer) -> None:
        """They are in Prometheus's format."""
        status, headers, body = await get(server, "/metrics")

        assert status == 200
        assert headers["Content-Type"].startswith("text/plain; version=")
        assert b'projection_state{state="consuming"} 1.0' in body

    @pytest.mark.parametrize("path", ["/livez", "/metrics"])
    async def test_to_head_has_no_body(self, server: HealthServer, path: str) -> None:
        """Its headers are those of GET."""
        sent = f"HEAD {path} HTTP/1.1\r\n\r\n".encode()

        head, _, body = (await asyncio.to_thread(exchange, server, sent)).partition(b"\r\n\r\n")

        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"Content-Length: 0" not in head
        assert body == b""

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
    async def test_to_another_method_is_no(self, server: HealthServer, method: str) -> None:
        """The answer is 405, with the allowed methods."""
        status, headers, _ = await get(server, "/livez", method)

        assert (status, headers["Allow"]) == (405, "GET, HEAD")

    @pytest.mark.parametrize(
        "path",
        ["/", "/metrics/", "/../../etc/passwd", "/livez/../metrics", "//metrics", "/%6divez", "*"],
    )
    async def test_to_another_path_is_not_found(self, server: HealthServer, path: str) -> None:
        """Paths are compared literally, and no path leads to a file."""
        status, _, body = await get(server, path)

        assert (status, body) == (404, b"Not Found\n")

    @pytest.mark.parametrize(
        "sent", [b"\r\n\r\n", b"GET /livez\r\n\r\n", b"GET / SPDY/1\r\n\r\n", b"\xff\x00\r\n\r\n"]
    )
    async def test_to_nonsense_is_a_bad_request(self, server: HealthServer, sent: bytes) -> None:
        """Input that is not HTTP gets an answer that says so."""
        answer = await asyncio.to_thread(exchange, server, sent)

        assert answer.startswith(b"HTTP/1.1 400 ")


class TestTheServer:
    async def test_answers_while_the_loop_is_stuck(
        self, facts: Facts, server: HealthServer
    ) -> None:
        """A worker whose loop is blocked by a handler is reported as not live."""
        facts.loop_turned_at = time.monotonic() - LOOP_SECONDS - 1
        answers: list[Response] = []
        asking = threading.Thread(target=lambda: answers.append(ask(server, "/livez")))

        asking.start()
        # No await: nothing else runs in this loop until the answer is there.
        asking.join(patience())

        assert answers[0][0] == 503
        assert "blocks" in json.loads(answers[0][2])["reason"]

    async def test_takes_an_address_of_ipv6(self, facts: Facts) -> None:
        """Its URL has the brackets that clients need."""
        async with server_of(facts, "::1") as server:
            assert server.url.startswith("http://[::1]:")
            assert (await get(server, "/livez"))[0] == 200

    async def test_names_a_port_that_is_taken(self, facts: Facts, server: HealthServer) -> None:
        """Whoever starts a second worker learns which setting to change."""
        port = urlsplit(server.url).port
        assert port is not None

        with pytest.raises(HealthUnavailable, match=f"{port}.* in use") as caught:
            await server_of(facts, port=port).__aenter__()
        assert "WORKER_HEALTH_PORT" in caught.value.hint

    async def test_names_an_address_of_another_machine(self, facts: Facts) -> None:
        """No machine has the address 198.51.100.0/24 (RFC 5737)."""
        with pytest.raises(HealthUnavailable, match=r"198\.51\.100\.1"):
            await server_of(facts, "198.51.100.1").__aenter__()

    async def test_ends_with_its_block(self, facts: Facts) -> None:
        """Port, connections and thread are gone, even with idle clients."""
        async with server_of(facts) as server:
            idle = connect(server)
            await get(server, "/livez")

        with idle:
            assert idle.recv(1) == b""
        assert all(thread.name != "health" for thread in threading.enumerate())
        with pytest.raises(ConnectionRefusedError):
            connect(server)


class TestAHostileClient:
    """It costs other clients nothing."""

    async def test_may_hold_a_thousand_sockets(
        self, server: HealthServer, facts: Facts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The newest is answered, and the oldest are closed."""
        # No connection is closed for being slow.
        monkeypatch.setattr(served, "REQUEST_SECONDS", 3600)
        with ExitStack() as stack:
            idle = []
            for number in range(1000):
                idle.append(stack.enter_context(connect(server)))
                if number % 50 == 0:
                    # The answer shows that the server has accepted all earlier ones. The kernel
                    # drops what exceeds its backlog, and retries only a second later.
                    await get(server, "/livez")
            facts.loop_turned_at = time.monotonic()
            status, _, _ = await get(server, "/readyz")

            assert status == 200
            for client in idle[: 1000 - MAX_CONNECTIONS]:
                assert _exchange(client, b"") == b""

    async def test_may_send_one_byte_at_a_time(
        self, server: HealthServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The limit applies to the whole request, so no byte extends it."""
        monkeypatch.setattr(served, "REQUEST_SECONDS", 0.2)
        clients = [connect(server) for _ in range(10)]
        for client in clients:
            client.settimeout(0)
        closed: set[socket.socket] = set()

        def drip() -> bool:
            for client in clients:
                try:
                    client.send(b"G")
                    if client.recv(1) == b"":
                        closed.add(client)
                except BlockingIOError:
                    pass
                except ConnectionError:
                    closed.add(client)
            return len(closed) == len(clients)

        try:
            assert (await get(server, "/readyz"))[0] == 200
            await eventually(drip)
        finally:
            for client in clients:
                client.close()

    async def test_may_read_nothing(
        self, server: HealthServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The pending answer is dropped at the limit, and the connection is closed."""
        monkeypatch.setattr(served, "REQUEST_SECONDS", 0.2)
        # More than the kernel buffers for a peer that does not read.
        big = served.Answer(http.HTTPStatus.OK, b"x" * 32 * 1024 * 1024)
        monkeypatch.setitem(server._paths, "/metrics", lambda: big)

        with connect(server) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            await eventually(lambda: server._connections)
            await eventually(lambda: not server._connections)
            received = _exchange(client, b"")

        assert len(received) < len(big.body)
        assert (await get(server, "/readyz"))[0] == 200

    @pytest.mark.parametrize("size", [served.MAX_HEADER_BYTES, 1024 * 1024])
    @pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
    async def test_may_send_a_header_of_a_megabyte(
        self, server: HealthServer, size: int, end: bytes
    ) -> None:
        """It is refused long before its end."""
        sent = b"GET /metrics HTTP/1.1\r\nX: " + b"a" * size + end

        answer = await asyncio.to_thread(exchange, server, sent)

        # The refusal may be lost: the server closes while the client still sends.
        assert answer.startswith(b"HTTP/1.1 431 ") or answer == b""
        assert (await get(server, "/readyz"))[0] == 200
