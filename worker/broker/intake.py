"""The way in: takes deliveries out of the broker's bytes before the client library reads them.

The library spends some 30 microseconds on a delivery: it reads each of its three frames with three
calls, decodes every field, and starts a task for the message. Little of that is needed for a
message that is decoded, committed and acked together with hundreds of others. Every other frame,
and whatever this module does not understand, reaches the library as it came.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, SupportsIndex

from aiormq.connection import SSLContextProvider, TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from worker.broker import properties
from worker.broker.decoders import UNDECODABLE
from worker.deliveries import Delivery
from worker.messages import Arrival

# A frame is its type, its channel, its size, so many bytes, and an end (AMQP 0-9-1, 2.3.5).
FRAME = struct.Struct(">BHI")
FRAME_END = 0xCE
FRAME_BYTES = FRAME.size + 1
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
BEAT = FRAME.pack(HEARTBEAT, 0, 0) + bytes([FRAME_END])
BASIC_DELIVER = bytes((0, 60, 0, 60))
# Behind the consumer's tag: the delivery's tag, whether it is redelivered, the exchange's length.
DELIVER = struct.Struct(">QBB")
# The size of the body stands behind the class and the weight (2.3.5.2).
BODY_SIZE = struct.Struct(">Q")


class Intake:
    """What has arrived and has not been taken yet; belongs to one consumer."""

    def __init__(self, decode: Callable[[Delivery], Arrival]) -> None:
        """Decode what arrives, at once: the last batch is being committed meanwhile."""
        self.decode = decode
        self.waiting: deque[Arrival] = deque()
        self.arrived = asyncio.Event()
        """Set whenever something arrives; whoever waits for it clears it."""


class IntakeReader(asyncio.StreamReader):
    """What the library reads from one connection; its deliveries go to the intake instead."""

    def __init__(self, intake: Intake) -> None:
        """Deliver to this intake."""
        super().__init__()
        self._intake = intake
        self._understands = True
        self._begun = bytearray()
        self._wanted = 0
        # The delivery of which not all frames have come yet.
        self._channel: int | None = None
        self._method = b""
        self._header = b""
        self._body: list[bytes] = []
        self._missing = 0

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """Take what the connection has received."""
        received = bytes(data)
        if self._begun:
            self._begun += received
            if len(self._begun) < self._wanted:
                return
            received = bytes(self._begun)
            self._begun.clear()
        try:
            others = self._take_deliveries(received) if self._understands else received
        except UNDECODABLE as error:
            self._understands = False
            self.set_exception(ConnectionError(f"a delivery cannot be read: {error}"))
        else:
            super().feed_data(others)

    def _take_deliveries(self, data: bytes) -> bytes:
        """Give the frames that are none of a delivery; keep the last one if it is not whole."""
        others: list[bytes] = []
        has_deliveries = False
        place, end = 0, len(data)
        while end - place >= FRAME_BYTES:
            kind, channel, size = FRAME.unpack_from(data, place)
            following = place + FRAME_BYTES + size
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
                return b"".join([*others, self._give_up(data[place:])])
            if following > end:
                self._wanted = following - place
                break
            if data[following - 1] != FRAME_END:
                return b"".join([*others, self._give_up(data[place:])])
            if self._is_of_delivery(kind, channel, data[place + FRAME.size : following - 1]):
                has_deliveries = True
            else:
                others.append(data[place:following])
            place = following
        else:
            self._wanted = FRAME_BYTES
        self._begun += data[place:]
        if has_deliveries and not others:
            # The library takes a peer for dead of which it hears nothing.
            return BEAT
        return b"".join(others)

    def _give_up(self, data: bytes) -> bytes:
        """Leave these bytes and all that follow to the library, which ends the connection."""
        self._understands = False
        return data

    def _is_of_delivery(self, kind: int, channel: int, payload: bytes) -> bool:
        if kind == METHOD and payload[:4] == BASIC_DELIVER:
            self._channel, self._method = channel, payload
            return True
        if channel != self._channel or kind not in (HEADER, BODY):
            return False
        if kind == HEADER:
            self._header = payload
            (self._missing,) = BODY_SIZE.unpack_from(payload, 4)
        else:
            self._body.append(payload)
            self._missing -= len(payload)
        if self._missing <= 0:
            self._deliver()
        return True

    def _deliver(self) -> None:
        method, header = self._method, self._header
        place = 5 + method[4]
        tag, is_redelivered, exchange_bytes = DELIVER.unpack_from(method, place)
        place += DELIVER.size + exchange_bytes
        delivery = Delivery(
            body=b"".join(self._body),
            tag=tag,
            routing_key=method[place + 1 : place + 1 + method[place]].decode(
                errors="backslashreplace"
            ),
            content_type=properties.content_type(header),
            redelivered=bool(is_redelivered),
            # The count is of deliveries that were lost, and after such a one there is the mark.
            losses=properties.losses(header) if is_redelivered else 0,
            read_properties=partial(properties.read, header),
        )
        self._intake.waiting.append(self._intake.decode(delivery))
        self._channel = None
        self._body.clear()
        self._intake.arrived.set()


class IntakeTransport(TransportFactory):
    """Connects the library to the broker so that deliveries go to an intake."""

    def __init__(self, intake: Intake) -> None:
        """Deliver to this intake."""
        self._intake = intake

    async def create(
        self,
        url: URL,
        **kwargs: Any,  # noqa: ANN401 - what the library hands to its own transports
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the connection; raises `AMQPConnectionError`, as the library's own transports do."""
        loop = asyncio.get_running_loop()
        reader = IntakeReader(self._intake)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        provider: SSLContextProvider = kwargs.pop("ssl_context_provider")
        context = await provider.get_context() if url.scheme == "amqps" else None
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, url.host or "", url.port or 0, ssl=context, **kwargs
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
