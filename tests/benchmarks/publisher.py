"""A publisher that uses little CPU, because it shares the machine with what is measured.

Speaks AMQP on a plain socket, because a client library spends more on a publish than the worker on
a whole message. It publishes persistent messages with confirms, as chat servers must.

    python -m tests.benchmarks.publisher PORT EXCHANGE FILE [--rate MESSAGES_A_SECOND]

A rate is even and follows the clock: a late publisher sends everything that has become due. Prints
in JSON when it began and when the last confirm came, on the clock that all processes share.
"""

import argparse
import json
import select
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pamqp import commands

from tests.benchmarks import traffic
from tests.benchmarks.connection import (
    BODY,
    CHANNEL,
    FRAME,
    FRAME_END,
    HEADER,
    METHOD,
    Connection,
)
from tests.waiting import patience

# How many are sent at once, and how many may be unconfirmed; more are not faster.
BLOCK = 100
UNCONFIRMED = 2_000
# Limits the wake-ups; at high rates several messages become due together.
TICK_SECONDS = 0.0005

# Class, method, and a field that is no longer used (AMQP 0-9-1, section 1.8.3.3).
BASIC_PUBLISH = struct.pack(">HHH", 60, 40, 0)
# A message that reaches no queue is returned.
MANDATORY = b"\x01"
# Class, weight, size, and the flags of content type and delivery mode (4.2.6.1).
CONTENT = struct.Struct(">HHQH")
BASIC_CLASS, FLAGS = 60, 0x8000 | 0x1000
PROPERTIES = b"\x10application/json\x02"
BASIC_ACK = struct.pack(">HH", 60, 80)
ACK = struct.Struct(">QB")


class Publisher:
    """A connection with confirms to a broker of this machine."""

    def __init__(self, port: int) -> None:
        """Connect, as guest."""
        self._connection = Connection(port)
        self._sent = 0
        self._is_confirmed = bytearray([True])
        self._confirmed_all_to = 0
        self.confirmed = 0
        """How many messages the broker has confirmed."""

    def __enter__(self) -> Self:
        """Open a channel with confirms."""
        self._connection.__enter__()
        self._connection.send(commands.Confirm.Select())
        self._connection.expect(commands.Confirm.SelectOk)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._connection.close()

    def publish(self, publishes: Sequence[bytes]) -> None:
        """Send the result of `publish_frames`, and wait while too many are unconfirmed."""
        self._connection.socket.sendall(b"".join(publishes))
        self._sent += len(publishes)
        self._is_confirmed.extend(bytes(len(publishes)))
        while self._sent - self.confirmed > UNCONFIRMED:
            self.receive()

    def finish(self) -> None:
        """Wait for every confirm."""
        while self.confirmed < self._sent:
            self.receive()

    def receive(self, seconds: float | None = None) -> None:
        """Receive the confirms that arrive within this time; return as soon as any have.

        Without a time, wait until some arrive; raises `TimeoutError` if none do.
        """
        limit = patience() if seconds is None else seconds
        if not select.select([self._connection.socket], [], [], limit)[0]:
            if seconds is None:
                raise TimeoutError(f"no confirm in {limit:.0f} seconds")
            return
        for whole in self._connection.receive():
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


def publish_frames(exchange: str, routing_key: bytes, body: bytes) -> bytes:
    """Return the three frames of one publish."""
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
    """Publish at this rate: message n is due n / rate seconds after the beginning."""
    began = time.monotonic()
    sent = 0
    while sent < len(publishes):
        due = min(len(publishes), int((time.monotonic() - began) * rate) + 1)
        if due > sent:
            publisher.publish(publishes[sent:due])
            sent = due
        else:
            # A confirm ends the wait early, which is harmless.
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
