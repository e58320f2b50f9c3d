"""Tolerant decoders of AMQP properties: what a publisher put there must not cost the connection.

The library decodes properties while it reads, before any code of ours sees the message; an error
there ends the connection, and the message comes again and ends the next one.
"""

from pamqp import decode
from pamqp.common import FieldValue

# In place of headers that cannot be decoded stand their bytes, under this name.
UNDECODED = "x-undecoded-headers"
# pamqp copies what is left of a table for each of its elements, so that its time grows with the
# square of the size: 16 KB of empty values take 7 ms, a full frame of 128 KB would take half a
# second.
MAX_TABLE_BYTES = 32 * 1024


def install() -> None:
    """Put these decoders into the library's registries, for all connections of the process."""
    decode.METHODS["table"] = headers
    decode.METHODS["timestamp"] = timestamp_property
    decode.METHODS["shortstr"] = short_text
    decode.TABLE_MAPPING[b"T"] = timestamp_header


def headers(value: bytes) -> tuple[int, FieldValue]:
    """Decode a table; give its bytes as its one entry where that is not possible.

    Undecodable are keys that are not UTF-8, tables nested deeper than Python recurses, types that
    AMQP does not know, and more than `MAX_TABLE_BYTES`.
    """
    end = 4 + int.from_bytes(value[:4])
    if end <= MAX_TABLE_BYTES:
        try:
            return decode.field_table(value[:end])
        except (ValueError, ArithmeticError, RecursionError):
            pass
    return end, {UNDECODED: bytearray(value[4:end])}


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
