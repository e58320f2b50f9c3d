"""A TCP relay between a program and a server, which simulates network faults."""

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from enum import Enum
from typing import Self

from tests.waiting import eventually

CHUNK_BYTES = 64 * 1024
# With SO_LINGER of zero seconds, closing sends a reset instead of an end (socket(7)).
NO_LINGER = struct.pack("ii", 1, 0)

Connection = tuple[StreamReader, StreamWriter]


class Way(Enum):
    """The two directions of a connection."""

    TO_SERVER = "to the server"
    TO_WORKER = "to the worker"


class Relay:
    """Forwards to a server's port, unless it is told otherwise.

    Its own port is reserved from the start, but connections before `listen` are refused.
    """

    def __init__(self, server_port: int) -> None:
        """Reserve a port of 127.0.0.1."""
        self.server_port = server_port
        """Where new connections go; the server behind it may change."""
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._server: asyncio.Server | None = None
        self._writers: set[StreamWriter] = set()
        self._flowing = {way: asyncio.Event() for way in Way}
        self.flow()
        self.hangs_up = False
        """Whether it ends every new connection at once."""
        self.connections = 0
        """The number of connections so far."""

    @property
    def port(self) -> int:
        """Its own port, for the worker to connect to."""
        return int(self._socket.getsockname()[1])

    async def listen(self) -> None:
        """Accept connections from now on."""
        self._server = await asyncio.start_server(self._serve, sock=self._socket)

    def stall(self, *ways: Way) -> None:
        """Become a black hole: connections stay open, but nothing passes one way or both."""
        for way in ways or Way:
            self._flowing[way].clear()

    def flow(self) -> None:
        """Let everything pass again, including what was held up."""
        for flowing in self._flowing.values():
            flowing.set()

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()

    def reset(self) -> None:
        """Reset every connection, as a firewall does that has forgotten it."""
        for writer in self._writers:
            peer: socket.socket = writer.get_extra_info("socket")
            with suppress(OSError):
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self.cut()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            self.cut()
            self.flow()
            await self._server.wait_closed()
            await eventually(lambda: not self._writers)
        self._socket.close()

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            if not self.hangs_up:
                server = await asyncio.open_connection("127.0.0.1", self.server_port)
                await self._join((reader, writer), server)
        writer.transport.abort()
        self._writers.discard(writer)

    async def _join(self, worker: Connection, server: Connection) -> None:
        """Forward in both directions until either side ends."""
        self._writers.add(server[1])
        ways = [
            asyncio.create_task(self._to_server(worker[0], server[1])),
            asyncio.create_task(self._to_worker(server[0], worker[1])),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        server[1].transport.abort()
        self._writers.discard(server[1])

    async def _to_server(self, worker: StreamReader, server: StreamWriter) -> None:
        while chunk := await worker.read(CHUNK_BYTES):
            await self._pass(chunk, server, Way.TO_SERVER)

    async def _to_worker(self, server: StreamReader, worker: StreamWriter) -> None:
        while chunk := await server.read(CHUNK_BYTES):
            await self._pass(chunk, worker, Way.TO_WORKER)

    async def _pass(self, content: bytes, to: StreamWriter, way: Way) -> None:
        await self._flowing[way].wait()
        to.write(content)
        await to.drain()
