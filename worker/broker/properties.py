"""Reads a content header: the content type, lost deliveries, and the other properties on demand.

Promise: no property, however odd, gets a message rejected. One that cannot be decoded counts as
absent.
"""

import struct
from collections.abc import Mapping
from functools import lru_cache

from pamqp.commands import Basic
from pamqp.header import ContentHeader

from worker.broker.decoders import UNDECODABLE, short_text
from worker.deliveries import Properties

# The properties that a dead letter keeps besides its content type, by aio-pika's name: pamqp's.
KEPT_PROPERTIES = {
    "app_id": "app_id",
    "content_encoding": "content_encoding",
    "correlation_id": "correlation_id",
    "message_id": "message_id",
    "timestamp": "timestamp",
    "type": "message_type",
}
# After class, weight and body size come two bytes of flags, one bit for each property. The first
# bit stands for the content type, which is the first property; the last bit means that more flags
# follow (AMQP 0-9-1, 4.2.6.1).
FLAGS = struct.Struct(">H")
FLAGS_AT = 12
HAS_CONTENT_TYPE, HAS_MORE_FLAGS = 1 << 15, 1


def content_type(header: bytes) -> str | None:
    """Return the content type, or None."""
    (flags,) = FLAGS.unpack_from(header, FLAGS_AT)
    if flags & HAS_MORE_FLAGS or not flags & HAS_CONTENT_TYPE:
        return None
    place = FLAGS_AT + FLAGS.size
    return _text(header[place : place + 1 + header[place]])


@lru_cache(maxsize=64)
def _text(value: bytes) -> str:
    return str(short_text(value)[1])


def losses(header: bytes) -> int:
    """Return how many consumers ended without settling the message, by the broker's count."""
    count = (_decoded(header).headers or {}).get("x-delivery-count")
    return count if isinstance(count, int) else 0


def read(header: bytes) -> Properties:
    """Return the headers and properties that a dead letter keeps."""
    decoded = _decoded(header)
    kept: Mapping[str, object] = {
        name: value
        for name, attribute in KEPT_PROPERTIES.items()
        if (value := getattr(decoded, attribute)) is not None
    }
    return Properties(decoded.headers or {}, kept)


def _decoded(header: bytes) -> Basic.Properties:
    content = ContentHeader()
    try:
        content.unmarshal(header)
    except UNDECODABLE:
        return Basic.Properties()
    return content.properties
