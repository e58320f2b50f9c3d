import struct
import time
from datetime import UTC, datetime

import pytest
from pamqp import decode, encode

from worker.broker.decoders import (
    MAX_TABLE_BYTES,
    UNDECODED,
    headers,
    short_text,
    timestamp_header,
    timestamp_property,
)


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = b"\x01k" + b"F" + table(content)
    return content


class TestHeaders:
    def test_that_are_well_formed_are_decoded_as_ever(self) -> None:
        """The library's own decoder has the first word."""
        encoded = encode.field_table({"a": 1, "b": {"c": ["d", None]}})

        assert headers(encoded + b"rest") == decode.field_table(encoded)

    @pytest.mark.parametrize(
        "content",
        [
            b"\x02\xff\xfe" + b"S" + struct.pack(">I", 1) + b"v",
            nested(900),
            b"\x01k?",
            b"\x01kS\x00",
            b"\x01k" + b"D\x00",
        ],
        ids=["key not UTF-8", "nested 900 deep", "unknown type", "cut off", "cut off decimal"],
    )
    def test_that_cannot_be_decoded_are_given_as_bytes(self, content: bytes) -> None:
        """The message after them is decoded as if they were well."""
        consumed, found = headers(table(content) + b"next property")

        assert consumed == 4 + len(content)
        assert found == {UNDECODED: bytearray(content)}

    def test_that_would_take_long_are_given_as_bytes(self) -> None:
        """Elements are counted in nothing: a table of empty values costs the square of its size."""
        content = b"\x01kA" + table(b"V" * MAX_TABLE_BYTES)

        _, found = headers(table(content))

        assert found == {UNDECODED: bytearray(content)}

    def test_with_a_moment_beyond_all_years_keep_the_number(self) -> None:
        """Nothing is lost of a header that is no time to Python."""
        content = b"\x01tT" + struct.pack(">Q", 2**64 - 1)

        assert timestamp_header(struct.pack(">Q", 2**64 - 1)) == (8, 2**64 - 1)
        assert headers(table(content))[0] == 4 + len(content)


class TestATimestamp:
    def test_in_seconds_is_a_moment(self) -> None:
        """What AMQP says."""
        moment = datetime(2026, 4, 27, tzinfo=UTC)

        assert timestamp_property(struct.pack(">Q", int(moment.timestamp()))) == (8, moment)

    @pytest.mark.parametrize("number", [2**64 - 1, time.time_ns(), time.time_ns() // 1000])
    def test_in_another_unit_does_no_harm(self, number: int) -> None:
        """It is left out if no calendar has it."""
        consumed, _ = timestamp_property(struct.pack(">Q", number))

        assert consumed == 8


class TestShortText:
    def test_that_is_not_utf8_is_escaped(self) -> None:
        """A routing key is any bytes to the broker."""
        assert short_text(b"\x03a\xffbrest") == (4, "a\\xffb")
