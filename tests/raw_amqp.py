"""A publisher that sends any bytes as a message's properties, which no client library does."""

import asyncio
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from pamqp import body, commands, frame, header
from pamqp.common import FieldTable

from tests.waiting import patiently

# Basic.Properties: the bit of each property that is present (AMQP 0-9-1, section 4.2.6.1).
HEADERS = 0x2000
DELIVERY_MODE = 0x1000
MESSAGE_ID = 0x0080
TIMESTAMP = 0x0040
PERSISTENT = b"\x02"
FRAME_END = b"\xce"
HEADER_FRAME = 2
BASIC_CLASS = 60


T = TypeVar("T")


class RawPublisher:
    """A connection whose publishes have been confirmed when they return."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def publish(
        self, queue: str, content: bytes, *, headers: bytes = b"", timestamp: bytes = b""
    ) -> None:
        """Publish to a queue; `headers` is a table without its length, `timestamp` 8 bytes."""
        flags = DELIVERY_MODE | (HEADERS if headers else 0) | (TIMESTAMP if timestamp else 0)
        table = struct.pack(">I", len(headers)) + headers if headers else b""
        payload = (
            struct.pack(">HxxQH", BASIC_CLASS, len(content), flags) + table + PERSISTENT + timestamp
        )
        self._send(commands.Basic.Publish(routing_key=queue, mandatory=True), 1)
        self._writer.write(struct.pack(">BHI", HEADER_FRAME, 1, len(payload)) + payload + FRAME_END)
        self._send(body.ContentBody(content), 1)
        await self.expect(commands.Basic.Ack)

    async def open(self) -> None:
        """Shake hands as guest, and open channel 1 with confirms."""
        self._writer.write(header.ProtocolHeader().marshal())
        await self.expect(commands.Connection.Start)
        client: FieldTable = {}
        self._send(
            commands.Connection.StartOk(
                client_properties=client, mechanism="PLAIN", response="\0guest\0guest"
            ),
            0,
        )
        tune = await self.expect(commands.Connection.Tune)
        self._send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0)
        self._send(commands.Connection.Open(), 0)
        await self.expect(commands.Connection.OpenOk)
        self._send(commands.Channel.Open(), 1)
        await self.expect(commands.Channel.OpenOk)
        self._send(commands.Confirm.Select(), 1)
        await self.expect(commands.Confirm.SelectOk)

    async def expect(self, kind: type[T]) -> T:
        """Read one frame, which must be of this kind."""
        head = await self._reader.readexactly(7)
        rest = await self._reader.readexactly(int.from_bytes(head[3:]) + 1)
        _, _, found = frame.unmarshal(head + rest)
        assert isinstance(found, kind), found
        return found

    def _send(self, value: frame.FrameTypes, channel: int) -> None:
        self._writer.write(frame.marshal(value, channel))


@asynccontextmanager
async def raw_publisher(port: int) -> AsyncIterator[RawPublisher]:
    """Hold a raw connection to a broker of this machine."""
    async with patiently():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        publisher = RawPublisher(reader, writer)
        try:
            await publisher.open()
            yield publisher
        finally:
            writer.close()
            await writer.wait_closed()
