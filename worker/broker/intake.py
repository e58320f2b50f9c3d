"""The intake: takes deliveries out of the broker's bytes before the client library reads them.

The library spends some 30 microseconds on a delivery: it reads each of its three frames with three
calls, decodes every field, and starts a task for the message. Little of that is needed for a
message that is decoded, committed and acked together with hundreds of others. Every other frame,
and whatever this module does not understand, reaches the library as it came.
"""

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import SupportsIndex, cast

from worker.broker import properties
from worker.broker.activity import Undecided
from worker.broker.decoders import UNDECODABLE
from worker.deliveries import SUSPECT_LOSSES, Delivery, Outcome
from worker.messages import Arrival

# A frame is a type, a channel, a size, that many bytes, and an end (AMQP 0-9-1, 2.3.5).
FRAME = struct.Struct(">BHI")
FRAME_END = 0xCE
FRAME_BYTES = FRAME.size + 1
METHOD, HEADER, BODY, HEARTBEAT = KINDS = (1, 2, 3, 8)
BEAT = FRAME.pack(HEARTBEAT, 0, 0) + bytes([FRAME_END])
# Well within the interval in which the library wants to hear of the broker.
BEAT_SECONDS = 1.0
BASIC_DELIVER = bytes((0, 60, 0, 60))
# Behind the consumer's tag: the delivery's tag, whether it is redelivered, the exchange's length.
DELIVER = struct.Struct(">QBB")
# The size of the body stands behind the class and the weight (2.3.5.2).
BODY_SIZE = struct.Struct(">Q")
# What is decoded without a pause, and committed together: large bodies must not keep the loop from
# its heartbeats, nor delay the acks of all other messages. JSON of empty arrays takes 28 times its
# bytes once it is decoded. A thousand usual messages have less than this.
BATCH_BYTES = 1024 * 1024
# Above this, deliveries are read slowly: the largest prefetch of messages of 16 KB comes to it.
# Above twice as much, they are not kept.
MOST_HELD_BYTES = 32 * 1024 * 1024
# What is read in a second then. The broker closes a connection on which a send takes 30 seconds
# (ranch_tcp.erl, `send_timeout`). A send may wait for two messages, and for a third of the kernel's
# buffer, of some MiB: so a message's size takes 8 seconds at most.
SLOW_BYTES, SLOW_SECONDS = 256 * 1024, 8
# Far above what any broker and client agree upon; a length that is spoiled may be of gigabytes.
MOST_FRAME_BYTES = 16 * 1024 * 1024


class Intake:
    """The deliveries that have arrived and have not been taken yet; belongs to one consumer.

    It also counts the bytes of all deliveries that are not settled, and says when it is full.
    Suspects wait apart from the others, and are decoded and taken alone.
    """

    def __init__(self, decode: Callable[[Delivery], Arrival]) -> None:
        """Call `decode` for each delivery when it is taken, or earlier when there is time."""
        self._decode = decode
        self._waiting: deque[Delivery] = deque()
        self._ready: deque[Arrival] = deque()
        self._ready_bytes = 0
        self._suspects: list[Delivery] = []
        self._is_suspects_turn = False
        self._taken: list[Arrival] = []
        self._held_bytes = 0
        self._not_kept: list[int] = []
        self._largest_not_kept = 0
        self.arrived = asyncio.Event()
        """Set whenever something arrives. The consumer clears it before it waits."""
        self.partitions: dict[bytes, int] = {}
        """The partition of each consumer tag, as long as it may deliver."""
        self.on_room: Callable[[], None] = _nothing
        """Called when deliveries have been settled and the intake is not full."""

    @property
    def is_full(self) -> bool:
        """Whether deliveries should be read slowly until some are settled."""
        return self._held_bytes >= MOST_HELD_BYTES

    def add(self, delivery: Delivery) -> None:
        """Keep a delivery until it is taken, and count its bytes until it is settled.

        If there is no room at all, it is not kept and must be returned to the broker. No later
        delivery is kept until then, because its ack would also be one for those that are missing.
        """
        if self._not_kept or self._held_bytes >= 2 * MOST_HELD_BYTES:
            self._not_kept.append(delivery.tag)
            self._largest_not_kept = max(self._largest_not_kept, delivery.size)
            return
        if delivery.losses < SUSPECT_LOSSES:
            self._waiting.append(delivery)
        else:
            self._suspects.append(delivery)
        self._held_bytes += delivery.size

    @property
    def has_suspects(self) -> bool:
        """Whether a suspect waits to be taken, or was taken last and has not been decided."""
        return bool(self._suspects) or any(each.delivery.is_suspect for each in self._taken[:1])

    @property
    def oldest_tag(self) -> int | None:
        """The tag of the first delivery that has not been taken yet; None if all have been."""
        first = [each.delivery for each in islice(self._ready, 1)] or list(islice(self._waiting, 1))
        return min((each.tag for each in (*first, *self._suspects)), default=None)

    def undecided(self) -> Iterator[Undecided]:
        """Return what is kept and has not been decided, in the order of arrival; suspects last."""
        for arrivals in (self._taken, self._ready):
            yield from ((each.delivery, each.content) for each in arrivals)
        for deliveries in (self._waiting, self._suspects):
            yield from ((each, None) for each in deliveries)

    def decided(self) -> None:
        """Note that what was taken last has been decided, and will be settled."""
        self._taken = []

    def settled(self, outcomes: Iterable[Outcome]) -> None:
        """Stop counting the bytes of deliveries that have been settled."""
        self._held_bytes -= sum(outcome.delivery.size for outcome in outcomes)
        if not self.is_full:
            self.on_room()
            if self._not_kept:
                self.arrived.set()

    def room_for_returns(self) -> int | None:
        """Return how many deliveries like those that were not kept may be held at once.

        Returns None if all were kept, or as long as there is no room for any of them.
        """
        if self.is_full or not self._not_kept:
            return None
        return max(1, MOST_HELD_BYTES // self._largest_not_kept)

    def take_returns(self) -> list[int]:
        """Return the tags of the deliveries that were not kept, to be given back to the broker."""
        tags, self._not_kept = self._not_kept, []
        self._largest_not_kept = 0
        return tags

    def look_ahead(self, most: int) -> None:
        """Decode up to this many deliveries, or `BATCH_BYTES`."""
        ready = self._ready
        while self._waiting and len(ready) < most and self._ready_bytes < BATCH_BYTES:
            # It stays there until it is decoded, so that an error leaves no gap.
            ready.append(self._decode(self._waiting[0]))
            self._ready_bytes += len(self._waiting.popleft().body)

    def take(self, most: int) -> list[Arrival]:
        """Return what has arrived, decoded, up to this number; empty only if nothing has.

        A suspect is returned alone, after what arrived with it: in turns with the others, so that
        neither has to wait for long.
        """
        if self._suspects and (self._is_suspects_turn or not (self._ready or self._waiting)):
            self._is_suspects_turn = False
            suspect = min(self._suspects, key=_order_of_suspects)
            self._suspects.remove(suspect)
            # If decoding it ends the process, the others lose no more than if a handler did.
            self._taken = [self._decode(suspect)]
            return self._taken
        self._is_suspects_turn = True
        self.look_ahead(most)
        self._taken = [self._ready.popleft() for _ in range(min(len(self._ready), most))]
        self._ready_bytes -= sum(len(arrival.delivery.body) for arrival in self._taken)
        return self._taken


def _order_of_suspects(delivery: Delivery) -> tuple[int, int]:
    """Return the place of a suspect among those that wait; quarantine.py says why.

    The culprit has lost at least as many deliveries as whatever was lost with it. Among equals the
    order turns with each loss, so that nothing stands behind the culprit twice.
    """
    direction = 1 if delivery.losses % 2 else -1
    return delivery.losses, direction * delivery.partition


class IntakeReader(asyncio.StreamReader):
    """The stream from which the library reads; deliveries go to the intake instead.

    While the intake is full, the connection is read slowly. The library still gets heartbeats then,
    and sends its own, so that neither side takes the other for dead.
    """

    def __init__(self, intake: Intake, clock: Callable[[], float] = time.monotonic) -> None:
        """Deliver to this intake; `clock` returns seconds."""
        # Only the intake pauses the connection; little is left for the library.
        super().__init__(limit=MOST_FRAME_BYTES)
        self._intake = intake
        intake.on_room = self._go_on
        self._socket: asyncio.ReadTransport | None = None
        self._is_paused = False
        self._beats = False
        # What may be read until the next beat, while it is paused.
        self._allowance = 0
        self._largest = 0
        self._clock = clock
        self._understands = True
        self._begun = bytearray()
        self._wanted = 0
        self._last_tag = 0
        # The delivery of which not all frames have come yet.
        self._channel: int | None = None
        self._method = self._header = b""
        self._body: list[bytes] = []
        self._missing = 0
        self._beat_at = -BEAT_SECONDS

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """Read from this connection."""
        super().set_transport(transport)
        self._socket = cast("asyncio.ReadTransport", transport)

    def feed_eof(self) -> None:
        """Note that the connection has ended."""
        self._is_paused = False
        super().feed_eof()

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """Take what the connection has received."""
        received = bytes(data)
        if self._is_paused:
            self._spend(len(received))
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
        """Return the frames that belong to no delivery; keep an incomplete last frame."""
        others: list[bytes] = []
        has_deliveries = False
        place, end = 0, len(data)
        self._wanted = FRAME_BYTES
        # Every frame passes here, so little is left to calls.
        while end - place >= FRAME_BYTES:
            kind, channel, size = FRAME.unpack_from(data, place)
            begins = place + FRAME.size
            ends = begins + size
            if (
                kind not in KINDS
                or size > MOST_FRAME_BYTES
                or (ends < end and data[ends] != FRAME_END)
            ):
                # The library gets this frame and everything after it, and ends the connection. That
                # also wakes up anyone who waits for the frames before it.
                self._understands = False
                others.append(data[place:])
                return b"".join(others)
            if ends >= end:
                self._wanted = ends + 1 - place
                break
            if kind == METHOD and data.startswith(BASIC_DELIVER, begins):
                self._begin(channel, data[begins:ends])
                has_deliveries = True
            elif channel == self._channel and kind in (HEADER, BODY):
                self._add(kind, data[begins:ends])
                has_deliveries = True
            else:
                others.append(data[place : ends + 1])
            place = ends + 1
        self._begun += data[place:]
        if has_deliveries:
            self._intake.arrived.set()
            others += self._sign_of_life()
        return b"".join(others)

    def _sign_of_life(self) -> list[bytes]:
        """Return a heartbeat now and then, because the library takes a silent peer for dead."""
        now = self._clock()
        if now - self._beat_at < BEAT_SECONDS:
            return []
        self._beat_at = now
        return [BEAT]

    def _pause(self) -> None:
        if self._socket is not None and not self._is_paused:
            self._is_paused = True
            self._allowance = 0
            self._socket.pause_reading()
            if not self._beats:
                self._beats = True
                asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)

    def _go_on(self) -> None:
        if self._socket is not None and self._is_paused:
            self._is_paused = False
            self._socket.resume_reading()

    def _beat(self) -> None:
        """Replace the broker's heartbeats during a pause, and let a little be read."""
        self._beats = self._is_paused and self._socket is not None and not self._socket.is_closing()
        if self._beats and self._socket is not None:
            super().feed_data(BEAT)
            self._allowance = max(SLOW_BYTES, self._largest // SLOW_SECONDS)
            self._socket.resume_reading()
            asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)

    def _spend(self, size: int) -> None:
        """Stop reading during a pause once the allowance is spent."""
        self._allowance -= size
        if self._allowance <= 0 and self._socket is not None:
            self._socket.pause_reading()

    def _begin(self, channel: int, method: bytes) -> None:
        if self._channel is not None:
            raise ValueError("one begins before the last one is complete")
        self._channel, self._method = channel, method
        # Only now, not as soon as it is full: while nothing is delivered, the broker's answers must
        # be read, such as the one for which a suspect's settlement waits.
        if self._intake.is_full:
            self._pause()

    def _add(self, kind: int, payload: bytes) -> None:
        """Take a frame of the content; the last one completes the delivery.

        Raises `ValueError` for a frame out of order: a delivery would be missing, and the ack of a
        later one would also be its ack.
        """
        if (kind == HEADER) == bool(self._header):
            raise ValueError("its header does not stand before its body")
        if kind == HEADER:
            self._header = payload
            (self._missing,) = BODY_SIZE.unpack_from(payload, 4)
            self._largest = max(self._largest, self._missing)
        else:
            self._body.append(payload)
            self._missing -= len(payload)
        if self._missing < 0:
            raise ValueError("its body is longer than its header says")
        if self._missing == 0:
            self._deliver()

    def _deliver(self) -> None:
        delivery = _delivery(
            self._method, self._header, b"".join(self._body), self._intake.partitions
        )
        # The broker counts the deliveries of a channel, from 1.
        if delivery.tag != self._last_tag + 1:
            raise ValueError(f"{delivery.tag} comes after {self._last_tag}")
        self._last_tag = delivery.tag
        self._intake.add(delivery)
        self._channel = None
        self._method = self._header = b""
        self._body = []


def _delivery(
    method: bytes, header: bytes, body: bytes, partitions: Mapping[bytes, int]
) -> Delivery:
    place = 5 + method[4]
    consumer_tag = method[5:place]
    tag, is_redelivered, exchange_bytes = DELIVER.unpack_from(method, place)
    place += DELIVER.size + exchange_bytes
    routing_key = method[place + 1 : place + 1 + method[place]]
    return Delivery(
        body,
        tag,
        routing_key.decode(errors="backslashreplace"),
        properties.content_type(header),
        bool(is_redelivered),
        # The count is of deliveries that were lost, and after such a one there is the mark.
        properties.losses(header) if is_redelivered else 0,
        partial(properties.read, header),
        len(header) + len(body),
        partitions.get(consumer_tag, 0),
    )


def _nothing() -> None:
    pass
