"""A publisher that costs little: it shares the machine with what is measured.

Speaks AMQP on a plain socket, because a client library spends more on a publish than the worker on
a whole message. As chat servers must, it publishes persistent messages with confirms.

    python -m tests.benchmarks.publisher PORT EXCHANGE FILE [--rate MESSAGES_A_SECOND]

A rate is even, and is kept by the clock: who is late sends what has become due. Says in JSON when
it began and when the last confirm came, on the clock that all processes share.
"""

import argparse
import json
import select
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from pamqp import commands, frame, header

from tests.benchmarks import traffic

# So many at once, and so many unconfirmed: more make nothing faster.
BLOCK = 100
UNCONFIRMED = 2_000
RECEIVE_BYTES = 65_536
SILENT_SECONDS = 60
# No more wake-ups than this: at high rates a few messages become due together.
TICK_SECONDS = 0.0005
CHANNEL = 1

FRAME = struct.Struct(">BHI")
METHOD, HEADER, BODY = 1, 2, 3
FRAME_END = b"\xce"
# Class, method, and a field that is no longer used (AMQP 0-9-1, section 1.8.3.3).
BASIC_PUBLISH = struct.pack(">HHH", 60, 40, 0)
# A message that no queue gets comes back.
MANDATORY = b"\x01"
# Class, weight, size, and the flags of content type and delivery mode (4.2.6.1).
CONTENT = struct.Struct(">HHQH")
BASIC_CLASS, FLAGS = 60, 0x8000 | 0x1000
PROPERTIES = b"\x10application/json\x02"
BASIC_ACK = struct.pack(">HH", 60, 80)
ACK = struct.Struct(">QB")

T = TypeVar("T")


class Publisher:
    """A connection with confirms to a broker of this machine."""

    def __init__(self, port: int) -> None:
        """Connect, as guest."""
        self._socket = socket.create_connection(("127.0.0.1", port), SILENT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()
        self._sent = 0
        self._is_confirmed = bytearray([True])
        self._confirmed_all_to = 0
        self.confirmed = 0
        """How many messages the broker has for good."""

    def __enter__(self) -> Self:
        """Open a channel with confirms."""
        self._socket.sendall(header.ProtocolHeader().marshal())
        self._expect(commands.Connection.Start)
        self._send(
            commands.Connection.StartOk(
                client_properties={}, mechanism="PLAIN", response="\0guest\0guest"
            ),
            0,
        )
        tune = self._expect(commands.Connection.Tune)
        self._send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0)
        self._send(commands.Connection.Open(), 0)
        self._expect(commands.Connection.OpenOk)
        self._send(commands.Channel.Open(), CHANNEL)
        self._expect(commands.Channel.OpenOk)
        self._send(commands.Confirm.Select(), CHANNEL)
        self._expect(commands.Confirm.SelectOk)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self._socket.close()

    def publish(self, publishes: Sequence[bytes]) -> None:
        """Send what `publish_frames` has made, and wait while too many are unconfirmed."""
        self._socket.sendall(b"".join(publishes))
        self._sent += len(publishes)
        self._is_confirmed.extend(bytes(len(publishes)))
        while self._sent - self.confirmed > UNCONFIRMED:
            self.receive(SILENT_SECONDS)

    def finish(self) -> None:
        """Wait for every confirm."""
        while self.confirmed < self._sent:
            self.receive(SILENT_SECONDS)

    def receive(self, seconds: float) -> None:
        """Take the confirms that come within this time; return as soon as any have."""
        if not select.select([self._socket], [], [], seconds)[0]:
            if seconds == SILENT_SECONDS:
                raise TimeoutError(f"no confirm in {SILENT_SECONDS} seconds")
            return
        for whole in self._receive():
            if not whole.startswith(BASIC_ACK, FRAME.size):
                raise ConnectionError(f"the broker does not confirm: {whole[:200]!r}")
            self._confirm(*ACK.unpack_from(whole, FRAME.size + len(BASIC_ACK)))

    def _confirm(self, tag: int, multiple: int) -> None:
        first = self._confirmed_all_to + 1 if multiple else tag
        for each in range(first, tag + 1):
            self.confirmed += not self._is_confirmed[each]
            self._is_confirmed[each] = True
        if multiple:
            self._confirmed_all_to = tag

    def _receive(self) -> list[bytes]:
        """Wait for bytes, and give the frames that are whole now."""
        received = self._socket.recv(RECEIVE_BYTES)
        if not received:
            raise ConnectionError("the broker closed the connection")
        self._received += received
        frames = []
        place = 0
        while place + FRAME.size < len(self._received):
            end = place + FRAME.size + FRAME.unpack_from(self._received, place)[2] + 1
            if end > len(self._received):
                break
            frames.append(bytes(self._received[place:end]))
            place = end
        del self._received[:place]
        return frames

    def _expect(self, kind: type[T]) -> T:
        frames: list[bytes] = []
        while not frames:
            frames = self._receive()
        _, _, found = frame.unmarshal(frames[0])
        assert isinstance(found, kind), found
        return found

    def _send(self, value: frame.FrameTypes, channel: int) -> None:
        self._socket.sendall(frame.marshal(value, channel))


def publish_frames(exchange: str, routing_key: bytes, body: bytes) -> bytes:
    """Give the three frames of one publish."""
    name = exchange.encode()
    method = b"".join(
        (BASIC_PUBLISH, bytes([len(name)]), name, bytes([len(routing_key)]), routing_key, MANDATORY)
    )
    content = CONTENT.pack(BASIC_CLASS, 0, len(body), FLAGS) + PROPERTIES
    return b"".join((*_frame(METHOD, method), *_frame(HEADER, content), *_frame(BODY, body)))


def _frame(kind: int, payload: bytes) -> tuple[bytes, bytes, bytes]:
    return FRAME.pack(kind, CHANNEL, len(payload)), payload, FRAME_END


def publish_all(publisher: Publisher, publishes: Sequence[bytes]) -> None:
    """Publish as fast as the broker confirms."""
    for start in range(0, len(publishes), BLOCK):
        publisher.publish(publishes[start : start + BLOCK])
        publisher.receive(0)


def publish_evenly(publisher: Publisher, publishes: Sequence[bytes], rate: float) -> None:
    """Publish so many a second: message n is due n / rate seconds after the beginning."""
    began = time.monotonic()
    sent = 0
    while sent < len(publishes):
        due = min(len(publishes), int((time.monotonic() - began) * rate) + 1)
        if due > sent:
            publisher.publish(publishes[sent:due])
            sent = due
        else:
            # A confirm ends the wait early, which does no harm.
            publisher.receive(max(TICK_SECONDS, began + sent / rate - time.monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("exchange")
    parser.add_argument("file", type=Path)
    parser.add_argument("--rate", type=float)
    options = parser.parse_args()
    publishes = [publish_frames(options.exchange, *each) for each in traffic.read(options.file)]
    with Publisher(options.port) as publisher:
        began = time.monotonic()
        print(json.dumps({"began": began}), flush=True)
        if options.rate:
            publish_evenly(publisher, publishes, options.rate)
        else:
            publish_all(publisher, publishes)
        publisher.finish()
    print(json.dumps({"ended": time.monotonic(), "confirmed": publisher.confirmed}), flush=True)


if __name__ == "__main__":
    main()
