"""The headers of dead letters: whose they are, what they tell, and which can be sent again."""

import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

from pamqp import encode
from pamqp.common import FieldTable

# Why, in the worker's own words; the broker's own dead letters have x-death instead.
REASON = "x-reason"
DETAIL = "x-detail"
QUEUE = "x-queue"
REJECTED_AT = "x-rejected-at"
OWN_HEADERS = (REASON, DETAIL, QUEUE, REJECTED_AT)
# What a requeue leaves on the message, so that the next rejection knows of it.
REQUEUE_COUNT = "x-requeue-count"
ROUTING_KEY = "x-routing-key"
REQUEUE_HEADERS = (REQUEUE_COUNT, ROUTING_KEY)
# The broker's account of the delivery that was rejected; on a new message it would be a lie.
DELIVERY_HEADERS = ("x-delivery-count", "x-acquired-count")

_DEATHS = ("x-death", "x-first-death-", "x-last-death-")
# The broker sends a copy to each queue that these name (rabbitmq.com/docs/sender-selected).
_MORE_ROUTES = ("CC", "BCC")
# All headers of a message share one frame with its properties; the broker's frames have 128 KiB.
MAX_KEPT_BYTES = 64 * 1024
# pamqp cuts longer names, and then there may be two of one name.
MAX_NAME_BYTES = 128
MAX_SHORT_TEXT_BYTES = 255


def of_the_publisher(headers: Mapping[str, object]) -> dict[str, object]:
    """Return the headers without those of the worker and the broker, and without extra routes."""
    return {
        name: value
        for name, value in headers.items()
        if name not in (*OWN_HEADERS, *REQUEUE_HEADERS, *DELIVERY_HEADERS, *_MORE_ROUTES)
        and not name.startswith(_DEATHS)
    }


def sendable(headers: Mapping[str, object]) -> dict[str, object]:
    """Return the received headers that can be sent again, within a bound."""
    room = MAX_KEPT_BYTES
    kept: dict[str, object] = {}
    # What a requeue left comes first: no publisher's header may push the count out.
    for name, value in sorted(headers.items(), key=lambda item: item[0] not in REQUEUE_HEADERS):
        size = _size(name, value)
        if size is not None and size <= room:
            kept[name] = value
            room -= size
    return kept


def sendable_properties(properties: Mapping[str, object]) -> dict[str, object]:
    """Return the properties that can be sent again."""
    return {
        name: value
        for name, value in properties.items()
        if not isinstance(value, str) or sendable_text(value) is not None
    }


def sendable_text(value: str | None) -> str | None:
    """Return a property's text if it can be sent again, else None.

    What is not UTF-8 is decoded with escapes, which may not fit where the bytes did.
    """
    return value if value and len(value.encode()) <= MAX_SHORT_TEXT_BYTES else None


def requeue_count(headers: Mapping[str, object]) -> int:
    """Return how often the message was requeued; anything but a positive integer counts as 0."""
    count = headers.get(REQUEUE_COUNT)
    return count if type(count) is int and count > 0 else 0


def death(headers: Mapping[str, object]) -> tuple[str | None, str | None, datetime | None]:
    """Return the broker's reason for its dead letter, the queue and the time, as far as known."""
    deaths = headers.get("x-death")
    last: object = deaths[0] if isinstance(deaths, list) and deaths else None
    last = last if isinstance(last, dict) else {}
    # The reason of its first death is the one that brought it here; later ones may be a shovel's.
    reason = _text(headers.get("x-first-death-reason")) or _text(last.get("reason"))
    at = last.get("time")
    return reason, _text(last.get("queue")), at if isinstance(at, datetime) else None


def moment(value: object) -> datetime | None:
    """Return a time that the worker wrote; None if the value is not one."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return found if found is None or found.tzinfo else found.replace(tzinfo=UTC)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _size(name: str, value: object) -> int | None:
    if len(name.encode()) > MAX_NAME_BYTES:
        return None
    try:
        return len(encode.field_table(cast("FieldTable", {name: value})))
    except (ArithmeticError, RecursionError, TypeError, ValueError, struct.error):
        return None
