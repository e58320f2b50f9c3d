import struct
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
        """The library's own decoder is tried first."""
        encoded = encode.field_table({"a": 1, "b": {"c": ["d", None]}})

        assert headers(encoded + b"rest") == decode.field_table(encoded)

    @pytest.mark.parametrize(
        ("odd", "found"),
        [
            (b"\x02\xff\xfeS" + table(b"v"), {"\\xff\\xfe": "v"}),
            (nested(900), {"k": bytearray(nested(899))}),
            (b"\x01kA" + table(b"V" * MAX_TABLE_BYTES), {"k": bytearray(b"V" * MAX_TABLE_BYTES)}),
            (b"\x01kA" + table(b"?"), {"k": bytearray(b"?")}),
        ],
        ids=["key not UTF-8", "nested 900 deep", "long array", "array of an unknown type"],
    )
    def test_that_cannot_be_decoded_stand_beside_those_that_can(
        self, odd: bytes, found: dict[str, object]
    ) -> None:
        """Headers that the broker itself wrote stay readable."""
        content = b"\x01aS" + table(b"first") + odd + b"\x01zS" + table(b"last")

        assert headers(table(content) + b"next property") == (
            4 + len(content), {"a": "first", **found, "z": "last"},
        )  # fmt: skip

    @pytest.mark.parametrize("odd", [b"\x01k?\x00", b"\x01kD\x00"], ids=["unknown type", "cut off"])
    def test_whose_end_cannot_be_told_are_given_as_bytes(self, odd: bytes) -> None:
        """All that follows them is bytes as well; the properties behind the table stay intact."""
        content = b"\x01aS" + table(b"first") + odd

        assert headers(table(content) + b"next property") == (
            4 + len(content), {"a": "first", UNDECODED: bytearray(odd)},
        )  # fmt: skip

    def test_of_many_small_entries_are_decoded_in_linear_time(self) -> None:
        """A full frame of them costs only what its size costs."""
        content = b"".join(b"\x05%05dV" % number for number in range(18_000))

        _, found = headers(table(content))

        assert isinstance(found, dict)
        assert len(found) == 18_000

    def test_with_a_moment_beyond_all_years_keep_the_number(self) -> None:
        """A header that Python cannot represent as a time keeps its value."""
        content = b"\x01tT" + struct.pack(">Q", 2**64 - 1)

        assert timestamp_header(struct.pack(">Q", 2**64 - 1)) == (8, 2**64 - 1)
        assert headers(table(content))[0] == 4 + len(content)


class TestATimestamp:
    def test_in_seconds_is_a_moment(self) -> None:
        """AMQP defines timestamps in seconds."""
        moment = datetime(2026, 4, 27, tzinfo=UTC)

        assert timestamp_property(struct.pack(">Q", int(moment.timestamp()))) == (8, moment)

    @pytest.mark.parametrize(
        "number", [2**64 - 1, 1_777_000_000_000_000_000, 1_777_000_000_000_000]
    )
    def test_in_another_unit_does_no_harm(self, number: int) -> None:
        """It is omitted if it is outside the calendar."""
        consumed, _ = timestamp_property(struct.pack(">Q", number))

        assert consumed == 8


class TestShortText:
    def test_that_is_not_utf8_is_escaped(self) -> None:
        """To the broker a routing key is arbitrary bytes."""
        assert short_text(b"\x03a\xffbrest") == (4, "a\\xffb")
