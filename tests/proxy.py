"""A relay between a worker and its broker that knows AMQP, and so simulates more faults."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable

from tests.relay import Relay, Way

PROTOCOL_HEADER_BYTES = 8
FRAME_HEADER_BYTES = 7
# A frame of type 1 begins with the numbers of its class and method (AMQP 0-9-1, section 1.8).
METHOD_FRAME = 1
BASIC_CONSUME = bytes((0, 60, 0, 20))
BASIC_ACK = bytes((0, 60, 0, 80))
BASIC_DELIVER = bytes((0, 60, 0, 60))


class Proxy(Relay):
    """Forwards frames to a broker's port, unless it is told otherwise."""

    def __init__(self, broker_port: int) -> None:
        """Reserve a port of 127.0.0.1."""
        super().__init__(broker_port)
        self.swallows: bytes | None = None
        """A method that it drops on the way to the broker, if any."""
        self.spoils: Callable[[bytes], bytes] | None = None
        """Changes the next frame for the worker, if set."""
        self.bytes_per_second: int | None = None
        """The bandwidth of each direction of each connection; None: unlimited."""
        self.delay_seconds = 0.0
        """The delay of everything that passes."""
        self.swallowed = 0
        """How often the method of `swallows` was dropped."""
        self.redelivered = 0
        """How many deliveries the broker has marked as redelivered."""

    @property
    def url(self) -> str:
        """The address for the worker to connect to."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    async def _to_server(self, worker: StreamReader, server: StreamWriter) -> None:
        header = await worker.readexactly(PROTOCOL_HEADER_BYTES)
        await self._pass(header, server, Way.TO_SERVER)
        while True:
            frame, method = await _frame(worker)
            if method[:4] == self.swallows:
                self.swallowed += 1
            else:
                await self._pass(frame, server, Way.TO_SERVER)

    async def _to_worker(self, server: StreamReader, worker: StreamWriter) -> None:
        while True:
            frame, method = await _frame(server)
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
