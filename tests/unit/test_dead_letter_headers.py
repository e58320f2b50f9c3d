from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from worker.broker.headers import (
    MAX_KEPT_BYTES,
    death,
    parse_time,
    publisher_headers,
    requeue_count,
    sendable,
    sendable_properties,
)
from worker.deliveries import DETAIL_MAX_CHARACTERS


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"k": found}
    return found


class TestSendable:
    @pytest.mark.parametrize(
        "value",
        [b"\xff", 1e300, 2**80, Decimal(2**40), nested(5_000), "x" * MAX_KEPT_BYTES],
        ids=["bytes", "double", "integer", "decimal", "deep", "long"],
    )
    def test_leaves_out_what_cannot_be_sent_alone(self, value: object) -> None:
        """Only that header is omitted; the others are kept."""
        assert sendable({"odd": value, "trace": "abc"}) == {"trace": "abc"}

    def test_leaves_out_a_name_that_would_be_cut(self) -> None:
        """A truncated name might be that of another header."""
        assert sendable({"n" * 129: 1, "n" * 128: 2}) == {"n" * 128: 2}

    def test_keeps_the_count_whatever_else_there_is(self) -> None:
        """A publisher cannot displace it."""
        many = {f"h-{number}": "x" for number in range(8_000)}

        kept = sendable({**many, "x-requeue-count": 2, "x-routing-key": "chat-1"})

        assert (kept["x-requeue-count"], kept["x-routing-key"]) == (2, "chat-1")
        assert 100 < len(kept) < 8_000

    def test_leaves_room_for_the_reason(self) -> None:
        """The longest detail and ten properties fit into one frame."""
        assert MAX_KEPT_BYTES + 4 * DETAIL_MAX_CHARACTERS + 10 * 256 + 1_024 <= 128 * 1024

    def test_leaves_out_a_property_that_grew(self) -> None:
        """Escapes replace bytes that were not UTF-8, and a short string has at most 255 bytes."""
        grown = {"message_id": "\\xff" * 100, "app_id": "chat", "timestamp": datetime.now(UTC)}

        assert sendable_properties(grown).keys() == {"app_id", "timestamp"}


class TestWhatTheyTell:
    @pytest.mark.parametrize("value", [None, True, -1, "2", 2.0, [2]])
    def test_a_count_that_is_none_counts_nothing(self, value: object) -> None:
        """Only a number that the worker may have written counts."""
        assert requeue_count({"x-requeue-count": value}) == 0

    @pytest.mark.parametrize(
        "headers",
        [
            {"x-death": "no list"},
            {"x-death": []},
            {"x-death": ["no table"]},
            {"x-death": [{"reason": 7, "queue": None, "time": "now"}]},
            {"x-first-death-reason": b"\xff"},
        ],
    )
    def test_a_death_that_is_garbage_tells_nothing(self, headers: dict[str, object]) -> None:
        """A malformed header does not break the list of a command."""
        assert death(headers) == (None, None, None)

    def test_a_death_tells_reason_queue_and_time(self) -> None:
        """The first reason counts, because it brought the message here."""
        at = datetime(2026, 4, 27, tzinfo=UTC)
        last = {"reason": "maxlen", "queue": "q", "time": at}

        assert death({"x-first-death-reason": "expired", "x-death": [last]}) == ("expired", "q", at)
        assert death({"x-death": [last]}) == ("maxlen", "q", at)

    @pytest.mark.parametrize("value", [None, 7, "", "yesterday", "2026-13-01T00:00:00Z"])
    def test_a_time_that_is_none_is_not_known(self, value: object) -> None:
        """A value that is not a time is unknown; a time without an offset is UTC."""
        assert parse_time(value) is None
        assert parse_time("2026-04-27T10:00:00") == datetime(2026, 4, 27, 10, tzinfo=UTC)

    def test_a_new_message_has_the_publishers_headers_alone(self) -> None:
        """Headers that would route copies to other queues are removed, too."""
        broker = {"x-death": [], "x-last-death-queue": "q", "x-delivery-count": 1}
        worker = {"x-reason": "r", "x-requeue-count": 1}

        assert publisher_headers({**broker, **worker, "CC": ["q"], "BCC": [], "a": 1}) == {"a": 1}
