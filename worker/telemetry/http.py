"""`/livez`, `/readyz` and `/metrics` over HTTP, answered even while the worker's loop is stuck.

This is a thread with its own event loop, asyncio's streams, and a parser of a few lines. In the
worker's loop, a blocking handler would also block the answer that reports it. The standard
library's servers, on which prometheus_client's is based, use a thread for each connection and time
each read instead of the whole request, so a client that sends a byte now and then occupies its
thread for ever. aiohttp would cost about 10 MB for three fixed paths.

Anyone who can reach the port may read the answers: nothing in them comes from messages.
"""

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from threading import Thread
from types import TracebackType
from typing import NamedTuple, Self

from worker.addresses import health_url
from worker.errors import HealthUnavailable
from worker.telemetry.health import Facts, Health, live, ready
from worker.telemetry.metrics import Metrics

# From accepting a connection to closing it, whatever the client does.
REQUEST_SECONDS = 5
# A well-behaved client is answered within milliseconds, so the oldest of too many connections is
# dropped. All of them together cost 3 MB.
MAX_CONNECTIONS = 256
# asyncio accepts this many in one turn of its loop, and a request is answered within three turns.
BACKLOG = 64
MAX_HEADER_BYTES = 8 * 1024
CLOSE_SECONDS = 2
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """A response to the client."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT


class HealthServer:
    """Serves health and metrics at `url` during an `async with` block.

    Entering raises `HealthUnavailable` if it cannot listen there.
    """

    def __init__(self, host: str, port: int, facts: Facts, metrics: Metrics) -> None:
        """Configure the server; port 0 takes any free port."""
        self.url = ""
        self._host = host
        self._port = port
        self._facts = facts
        self._metrics = metrics
        self._paths: dict[str, Callable[[], Answer]] = {
            "/livez": lambda: self._health(live),
            "/readyz": lambda: self._health(ready),
            "/metrics": self._render,
        }
        # Oldest first; used only by the server's thread.
        self._connections: dict[asyncio.Task[None], None] = {}

    async def __aenter__(self) -> Self:
        """Start to listen."""
        listens: Future[tuple[str, Callable[[], object]]] = Future()
        self._thread = Thread(
            target=asyncio.run, args=(self._serve(listens),), name="health", daemon=True
        )
        self._thread.start()
        self.url, self._stop = await asyncio.wrap_future(listens)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the port and every connection, and end the thread."""
        self._stop()
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)

    async def _serve(self, listens: Future[tuple[str, Callable[[], object]]]) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        try:
            server = await asyncio.start_server(
                self._connected, self._host, self._port, limit=MAX_HEADER_BYTES, backlog=BACKLOG
            )
        except (OSError, ValueError) as error:
            # A host that is not a valid name raises ValueError.
            listens.set_exception(unavailable(self._host, self._port, error))
            return
        async with server:
            host, port = server.sockets[0].getsockname()[:2]
            listens.set_result(
                (health_url(host, port), lambda: loop.call_soon_threadsafe(stop.set))
            )
            await stop.wait()
            # From Python 3.12 on, the end of the block waits for these tasks.
            for connection in self._connections:
                connection.cancel()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()
        connection = asyncio.create_task(self._converse(reader, writer))
        self._connections[connection] = None
        connection.add_done_callback(lambda _: self._connections.pop(connection, None))
        # Closing would wait for a client that does not read its response; this does not.
        connection.add_done_callback(lambda _: writer.transport.abort())

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # If a client goes away or is too slow, there is nobody to tell.
        with suppress(OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(REQUEST_SECONDS):
                writer.write(await self._response(reader))
                writer.close()
                await writer.wait_closed()

    async def _response(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _encoded(_plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        line = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(line) != 3 or not line[2].startswith("HTTP/1."):
            return _encoded(_plain(HTTPStatus.BAD_REQUEST))
        method, target, _ = line
        answer = self._paths.get(target.partition("?")[0])
        if answer is None:
            return _encoded(_plain(HTTPStatus.NOT_FOUND), with_body=method != "HEAD")
        if method not in ("GET", "HEAD"):
            return _encoded(_plain(HTTPStatus.METHOD_NOT_ALLOWED))
        return _encoded(answer(), with_body=method == "GET")

    def _health(self, look: Callable[[Facts, float], Health]) -> Answer:
        health = look(self._facts, time.monotonic())
        document = {"ok": health.is_well, "reason": health.reason, "state": self._facts.state}
        status = HTTPStatus.OK if health.is_well else HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(status, json.dumps(document).encode() + b"\n", JSON)

    def _render(self) -> Answer:
        body, content_type = self._metrics.render()
        return Answer(HTTPStatus.OK, body, content_type)


def _plain(status: HTTPStatus) -> Answer:
    return Answer(status, f"{status.phrase}\n".encode())


def _encoded(answer: Answer, *, with_body: bool = True) -> bytes:
    status, body, content_type = answer
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode() + (body if with_body else b"")


def unavailable(host: str, port: int, error: OSError | ValueError) -> HealthUnavailable:
    """Return the error for an address on which the server cannot listen."""
    return HealthUnavailable(
        f"Health cannot be served at {health_url(host, port)} ({error}).",
        "set WORKER_HEALTH_PORT to a free port, or to 0 for any free one; WORKER_HEALTH_HOST must "
        "be an address of this machine.",
    )
