"""A TCP proxy between a worker and its broker that simulates network faults."""

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Self

from tests.waiting import eventually

PROTOCOL_HEADER_BYTES = 8
FRAME_HEADER_BYTES = 7
# A frame of type 1 begins with the numbers of its class and method (AMQP 0-9-1, section 1.8).
METHOD_FRAME = 1
BASIC_CONSUME = bytes((0, 60, 0, 20))
BASIC_ACK = bytes((0, 60, 0, 80))
BASIC_DELIVER = bytes((0, 60, 0, 60))
# With SO_LINGER of zero seconds, closing sends a reset instead of an end (socket(7)).
NO_LINGER = struct.pack("ii", 1, 0)


class Way(Enum):
    """The two directions of a connection."""

    TO_BROKER = "to the broker"
    TO_WORKER = "to the worker"


class Proxy:
    """Forwards to a broker's port, unless it is told otherwise.

    Its own port is reserved from the start, but connections before `listen` are refused.
    """

    def __init__(self, broker_port: int) -> None:
        """Reserve a port of 127.0.0.1."""
        self._broker_port = broker_port
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._server: asyncio.Server | None = None
        self._writers: set[StreamWriter] = set()
        self._flowing = {way: asyncio.Event() for way in Way}
        self.flow()
        self.hangs_up = False
        """Whether it ends every new connection at once."""
        self.swallows: bytes | None = None
        """A method that it drops on the way to the broker, if any."""
        self.spoils: Callable[[bytes], bytes] | None = None
        """Changes the next frame for the worker, if set."""
        self.bytes_per_second: int | None = None
        """The bandwidth of each direction of each connection; None: unlimited."""
        self.delay_seconds = 0.0
        """The delay of everything that passes."""
        self.connections = 0
        """The number of connections so far."""
        self.swallowed = 0
        """How often the method of `swallows` was dropped."""
        self.redelivered = 0
        """How many deliveries the broker has marked as redelivered."""

    @property
    def url(self) -> str:
        """The address for the worker to connect to."""
        return f"amqp://guest:guest@127.0.0.1:{self._socket.getsockname()[1]}/"

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
                broker = await asyncio.open_connection("127.0.0.1", self._broker_port)
                await self._join((reader, writer), broker)
        writer.transport.abort()
        self._writers.discard(writer)

    async def _join(
        self, worker: tuple[StreamReader, StreamWriter], broker: tuple[StreamReader, StreamWriter]
    ) -> None:
        """Forward in both directions until either side ends."""
        self._writers.add(broker[1])
        ways = [
            asyncio.create_task(self._to_broker(worker[0], broker[1])),
            asyncio.create_task(self._to_worker(broker[0], worker[1])),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        broker[1].transport.abort()
        self._writers.discard(broker[1])

    async def _to_broker(self, worker: StreamReader, broker: StreamWriter) -> None:
        header = await worker.readexactly(PROTOCOL_HEADER_BYTES)
        await self._pass(header, broker, Way.TO_BROKER)
        while True:
            frame, method = await _frame(worker)
            if method[:4] == self.swallows:
                self.swallowed += 1
            else:
                await self._pass(frame, broker, Way.TO_BROKER)

    async def _to_worker(self, broker: StreamReader, worker: StreamWriter) -> None:
        while True:
            frame, method = await _frame(broker)
            if method[:4] == BASIC_DELIVER:
                # It follows the consumer tag with its length, and the delivery tag.
                self.redelivered += method[5 + method[4] + 8] & 1
            if self.spoils is not None:
                frame, self.spoils = self.spoils(frame), None
            await self._pass(frame, worker, Way.TO_WORKER)

    async def _pass(self, content: bytes, to: StreamWriter, way: Way) -> None:
        await self._flowing[way].wait()
        if self.bytes_per_second is not None:
            await asyncio.sleep(len(content) / self.bytes_per_second)  # noqa: TID251 - a slow link
        if self.delay_seconds:
            # The delay does not hold up what follows: a long link is not a narrow one.
            asyncio.get_running_loop().call_later(self.delay_seconds, to.write, content)
        else:
            to.write(content)
            await to.drain()


async def _frame(reader: StreamReader) -> tuple[bytes, bytes]:
    """Read a frame; return it whole, and its method if it is one."""
    header = await reader.readexactly(FRAME_HEADER_BYTES)
    payload_and_end = await reader.readexactly(int.from_bytes(header[3:]) + 1)
    return header + payload_and_end, payload_and_end[:-1] if header[0] == METHOD_FRAME else b""
