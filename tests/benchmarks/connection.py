"""AMQP on a plain socket, for the parts of the benchmark that must use little CPU."""

import socket
import struct
from typing import Self, TypeVar

from pamqp import commands, frame, header

from tests.waiting import patience

RECEIVE_BYTES = 256 * 1024
CHANNEL = 1
# A frame is a type, a channel, a size, that many bytes, and an end (AMQP 0-9-1, section 2.3.5).
FRAME = struct.Struct(">BHI")
METHOD, HEADER, BODY = 1, 2, 3
FRAME_END = b"\xce"

T = TypeVar("T")


class Connection:
    """A connection with one channel to a broker of this machine."""

    def __init__(self, port: int) -> None:
        """Connect, as guest."""
        self.socket = socket.create_connection(("127.0.0.1", port), patience())
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def __enter__(self) -> Self:
        """Open the channel."""
        self.socket.sendall(header.ProtocolHeader().marshal())
        self.expect(commands.Connection.Start)
        self.send(
            commands.Connection.StartOk(
                client_properties={}, mechanism="PLAIN", response="\0guest\0guest"
            ),
            channel=0,
        )
        tune = self.expect(commands.Connection.Tune)
        self.send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), channel=0)
        self.send(commands.Connection.Open(), channel=0)
        self.expect(commands.Connection.OpenOk)
        self.send(commands.Channel.Open())
        self.expect(commands.Channel.OpenOk)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """End the connection without closing it; the broker notices."""
        self.socket.close()

    def send(self, value: frame.FrameTypes, channel: int = CHANNEL) -> None:
        """Send a method."""
        self.socket.sendall(frame.marshal(value, channel))

    def expect(self, kind: type[T]) -> T:
        """Wait for an answer and return it; what follows it is left for `receive`."""
        frames: list[bytes] = []
        while not frames:
            frames = self.receive()
        self._received = b"".join(frames[1:]) + self._received
        _, _, found = frame.unmarshal(frames[0])
        assert isinstance(found, kind), found
        return found

    def receive(self) -> list[bytes]:
        """Wait for bytes, and return the frames that are now complete."""
        if not (received := self.socket.recv(RECEIVE_BYTES)):
            raise ConnectionError("the broker closed the connection")
        received = self._received + received
        frames = []
        place = 0
        while place + FRAME.size < len(received):
            end = place + FRAME.size + FRAME.unpack_from(received, place)[2] + 1
            if end > len(received):
                break
            frames.append(received[place:end])
            place = end
        self._received = received[place:]
        return frames
