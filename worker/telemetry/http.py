"""/livez, /readyz and /metrics over HTTP.

The standard library's threading server, in threads of its own: it answers while a handler blocks
the event loop, which is when somebody asks, and costs a megabyte where a framework costs ten. Meant
for probes and scrapers on loopback or a private network, and guarded against slow or many clients.
"""

import json
import socket
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from time import monotonic
from types import TracebackType
from typing import Any, Self

from worker.errors import WorkerError
from worker.telemetry.health import Facts, Health, live, ready
from worker.telemetry.metrics import CONTENT_TYPE, Metrics

# A client that says nothing for so long is cut off, and so is one whose request takes too long.
SILENCE_SECONDS = 5.0
REQUEST_SECONDS = 10.0
MOST_CONNECTIONS = 32
POLL_SECONDS = 0.25


class HealthUnavailable(WorkerError):
    """The address for health and metrics cannot be taken."""


class HealthServer:
    """Serves a worker's health within `async with`."""

    def __init__(self, host: str, port: int, facts: Facts, metrics: Metrics) -> None:
        """Name the address; port 0 is any that is free."""
        self._address = (host, port)
        self._facts = facts
        self._metrics = metrics
        self.url = ""
        """Where it serves, once it does."""

    async def __aenter__(self) -> Self:
        """Serve; raises `HealthUnavailable` if the address cannot be taken."""
        try:
            self._server = _Server(self._address, self._facts, self._metrics)
        except OSError as error:
            host, port = self._address
            raise HealthUnavailable(
                f"Health and metrics cannot be served (address {host}:{port}: {error.strerror}).",
                "set WORKER_HEALTH_HOST and WORKER_HEALTH_PORT to an address that is free; port 0 "
                "takes any.",
            ) from error
        self.url = f"http://{_in_url(self._address[0])}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="health", daemon=True
        )
        self._thread.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Leaving must not wait for a slow client.
    block_on_close = False

    def __init__(self, address: tuple[str, int], facts: Facts, metrics: Metrics) -> None:
        self.facts = facts
        self.metrics = metrics
        self._open: dict[socket.socket, float] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Request)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the library
        if len(self._open) >= MOST_CONNECTIONS:
            # The newest is let in: it may be the probe that decides whether the worker lives.
            self._cut(next(iter(self._open)))
        self._open[request] = monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - as above
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off who takes too long, a byte at a time."""
        latest = monotonic() - REQUEST_SECONDS
        for request in [each for each, began in list(self._open.items()) if began < latest]:
            self._cut(request)

    def _cut(self, request: socket.socket) -> None:
        self._open.pop(request, None)
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as above
        # A client that hung up is no news.
        pass


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = SILENCE_SECONDS
    server_version = "projection-worker"
    sys_version = ""

    def do_GET(self) -> None:
        facts, now = self.server.facts, monotonic()
        match self.path:
            case "/livez":
                self._answer_health(live(facts, now))
            case "/readyz":
                self._answer_health(ready(facts, now))
            case "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE, self.server.metrics.render())
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"/livez /readyz /metrics\n")

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def _answer_health(self, health: Health) -> None:
        document = {
            "ok": health.is_well,
            "state": self.server.facts.state.value,
            "reason": health.reason,
        }
        status = HTTPStatus.OK if health.is_well else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, "application/json", json.dumps(document).encode() + b"\n")

    def _answer(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the library
        # Probes come every few seconds; they would drown the worker's own lines.
        pass


def _in_url(host: str) -> str:
    try:
        return f"[{host}]" if ip_address(host).version == 6 else host
    except ValueError:
        return host
