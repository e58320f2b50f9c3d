"""A TCP proxy between a worker and its broker, which does to them what networks do."""

import asyncio
import socket
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from typing import Self

from tests.waiting import eventually

PROTOCOL_HEADER_BYTES = 8
FRAME_HEADER_BYTES = 7
CHUNK_BYTES = 65_536
# A frame of type 1 begins with the numbers of a class and a method (AMQP 0-9-1, section 1.8).
METHOD_FRAME = 1
BASIC_CONSUME = bytes((0, 60, 0, 20))
BASIC_ACK = bytes((0, 60, 0, 80))


class Proxy:
    """Forwards to a broker's port, unless it is told otherwise.

    Its own port is taken from the start, but who connects before `listen` is refused.
    """

    def __init__(self, broker_port: int) -> None:
        """Take a port of 127.0.0.1."""
        self._broker_port = broker_port
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._server: asyncio.Server | None = None
        self._writers: set[StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.hangs_up = False
        """Whether it ends every new connection at once."""
        self.swallows: bytes | None = None
        """The method that the broker never gets from the worker, if there is one."""
        self.connections = 0
        """How many there have been."""
        self.swallowed = 0
        """How often it has been swallowed."""

    @property
    def url(self) -> str:
        """Where a worker connects to."""
        return f"amqp://guest:guest@127.0.0.1:{self._socket.getsockname()[1]}/"

    async def listen(self) -> None:
        """Take connections from now on."""
        self._server = await asyncio.start_server(self._serve, sock=self._socket)

    def stall(self) -> None:
        """Become a black hole: connections stay open, and nothing passes in either direction."""
        self._flowing.clear()

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            self.cut()
            self._flowing.set()
            await self._server.wait_closed()
            await eventually(lambda: not self._writers)
        self._socket.close()

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            if not self.hangs_up:
                broker = await asyncio.open_connection("127.0.0.1", self._broker_port)
                await self._join((reader, writer), broker)
        writer.transport.abort()
        self._writers.discard(writer)

    async def _join(
        self, worker: tuple[StreamReader, StreamWriter], broker: tuple[StreamReader, StreamWriter]
    ) -> None:
        """Forward both ways until either side ends."""
        self._writers.add(broker[1])
        ways = [
            asyncio.create_task(self._forward_frames(worker[0], broker[1])),
            asyncio.create_task(self._forward_bytes(broker[0], worker[1])),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        broker[1].transport.abort()
        self._writers.discard(broker[1])

    async def _forward_frames(self, worker: StreamReader, broker: StreamWriter) -> None:
        await self._pass(await worker.readexactly(PROTOCOL_HEADER_BYTES), broker)
        while True:
            header = await worker.readexactly(FRAME_HEADER_BYTES)
            payload_and_end = await worker.readexactly(int.from_bytes(header[3:]) + 1)
            method = payload_and_end[:4] if header[0] == METHOD_FRAME else b""
            if method == self.swallows:
                self.swallowed += 1
            else:
                await self._pass(header + payload_and_end, broker)

    async def _forward_bytes(self, broker: StreamReader, worker: StreamWriter) -> None:
        while chunk := await broker.read(CHUNK_BYTES):
            await self._pass(chunk, worker)

    async def _pass(self, content: bytes, to: StreamWriter) -> None:
        await self._flowing.wait()
        to.write(content)
        await to.drain()
