"""Tolerant decoders of AMQP properties: nothing that a publisher sends may end the connection.

The library decodes properties while it reads, before any code of ours sees the message; an error
there ends the connection, and the message comes again and ends the next one.
"""

import struct
from contextlib import suppress

from pamqp import decode
from pamqp.common import FieldTable, FieldValue

# The name for the bytes that follow a header whose end cannot be found.
UNDECODED = "x-undecoded-headers"
# pamqp copies the rest of a table for each of its elements, so its time grows with the square of
# the size: 16 KB of empty values take 7 ms, a full frame of 128 KB would take half a
# second.
MAX_TABLE_BYTES = 32 * 1024
# Values that say their length: tables, arrays, strings, bytes (rabbitmq.com/amqp-0-9-1-errata,
# "Field types"). All others have 9 bytes at most, with their type.
PREFIXED = (b"F", b"A", b"S", b"x")
NESTED = (b"F", b"A")
SCALAR_BYTES = 9
UNDECODABLE = (ValueError, ArithmeticError, IndexError, RecursionError, struct.error)


def install() -> None:
    """Put these decoders into the library's registries, for all connections of the process."""
    decode.METHODS["table"] = headers
    decode.METHODS["timestamp"] = timestamp_property
    decode.METHODS["shortstr"] = short_text
    decode.TABLE_MAPPING[b"T"] = timestamp_header


def headers(value: bytes) -> tuple[int, FieldValue]:
    """Decode a table; a value that cannot be decoded is returned as its bytes.

    Such a value is nested deeper than Python recurses, longer than `MAX_TABLE_BYTES`, or of a type
    that AMQP does not know. Keys that are not UTF-8 are escaped.
    """
    end = 4 + int.from_bytes(value[:4])
    if end <= MAX_TABLE_BYTES:
        with suppress(*UNDECODABLE):
            return decode.field_table(value[:end])
    return end, _entry_by_entry(value[4:end])


def _entry_by_entry(content: bytes) -> FieldTable:
    found: FieldTable = {}
    place = 0
    while place < len(content):
        consumed, key = short_text(content[place : place + 256])
        try:
            length, value = _value(content, place + consumed)
        except UNDECODABLE:
            return {**found, UNDECODED: bytearray(content[place:])}
        found[str(key)] = value
        place += consumed + length
    return found


def _value(content: bytes, place: int) -> tuple[int, FieldValue]:
    kind = content[place : place + 1]
    if kind not in PREFIXED:
        return decode.embedded_value(content[place : place + SCALAR_BYTES])
    end = place + 5 + int.from_bytes(content[place + 1 : place + 5])
    if kind not in NESTED or end - place <= MAX_TABLE_BYTES:
        with suppress(*UNDECODABLE):
            return decode.embedded_value(content[place:end])
    return end - place, bytearray(content[place + 5 : end])


def timestamp_property(value: bytes) -> tuple[int, FieldValue]:
    """Decode the property `timestamp`; None for one beyond the year 9999.

    AMQP wants seconds, the broker does not look, and publishers send micro- and nanoseconds.
    """
    try:
        return decode.timestamp(value)
    except (ValueError, ArithmeticError, OSError):
        return 8, None


def timestamp_header(value: bytes) -> tuple[int, FieldValue]:
    """Decode a timestamp within headers; the bare number for one beyond the year 9999."""
    try:
        return decode.timestamp(value)
    except (ValueError, ArithmeticError, OSError):
        return 8, int.from_bytes(value[:8])


def short_text(value: bytes) -> tuple[int, FieldValue]:
    """Decode a short string, with escapes for what is not UTF-8."""
    end = 1 + int.from_bytes(value[:1])
    return end, value[1:end].decode(errors="backslashreplace")
