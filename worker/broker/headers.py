"""The headers of dead letters: who wrote them, what they mean, and which can be sent again."""

import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

from pamqp import encode
from pamqp.common import FieldTable

# Written by the worker. Dead letters that the broker makes have x-death instead.
REASON = "x-reason"
DETAIL = "x-detail"
QUEUE = "x-queue"
REJECTED_AT = "x-rejected-at"
OWN_HEADERS = (REASON, DETAIL, QUEUE, REJECTED_AT)
# Added by a requeue, so that the next rejection can count it.
REQUEUE_COUNT = "x-requeue-count"
ROUTING_KEY = "x-routing-key"
REQUEUE_HEADERS = (REQUEUE_COUNT, ROUTING_KEY)
# The broker's counts for the rejected delivery, which would be wrong on a new message.
DELIVERY_HEADERS = ("x-delivery-count", "x-acquired-count")

_DEATHS = ("x-death", "x-first-death-", "x-last-death-")
# The broker also routes a copy by each key in these (rabbitmq.com/docs/sender-selected).
_MORE_ROUTES = ("CC", "BCC")
# A message's headers and properties share one frame, and the broker's frames have 128 KiB.
MAX_KEPT_BYTES = 64 * 1024
# pamqp truncates longer names, which may leave two headers of one name.
MAX_NAME_BYTES = 128
MAX_SHORT_TEXT_BYTES = 255


def publisher_headers(headers: Mapping[str, object]) -> dict[str, object]:
    """Return the headers without the worker's, the broker's, and those that add routes."""
    return {
        name: value
        for name, value in headers.items()
        if name not in (*OWN_HEADERS, *REQUEUE_HEADERS, *DELIVERY_HEADERS, *_MORE_ROUTES)
        and not name.startswith(_DEATHS)
    }


def sendable(headers: Mapping[str, object]) -> dict[str, object]:
    """Return the received headers that can be sent again, up to `MAX_KEPT_BYTES`."""
    room = MAX_KEPT_BYTES
    kept: dict[str, object] = {}
    # The requeue's headers come first, so that a publisher's headers cannot push the count out.
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

    Invalid UTF-8 is decoded with escapes, which may be too long to be sent although the bytes were
    not.
    """
    return value if value and len(value.encode()) <= MAX_SHORT_TEXT_BYTES else None


def requeue_count(headers: Mapping[str, object]) -> int:
    """Return how often the message was requeued; 0 unless the header is a positive integer."""
    count = headers.get(REQUEUE_COUNT)
    return count if type(count) is int and count > 0 else 0


def death(headers: Mapping[str, object]) -> tuple[str | None, str | None, datetime | None]:
    """Return the broker's reason for its dead letter, the queue and the time; None if unknown."""
    deaths = headers.get("x-death")
    last: object = deaths[0] if isinstance(deaths, list) and deaths else None
    last = last if isinstance(last, dict) else {}
    # The first death brought the message here; later ones may be a shovel's.
    reason = _text(headers.get("x-first-death-reason")) or _text(last.get("reason"))
    at = last.get("time")
    return reason, _text(last.get("queue")), at if isinstance(at, datetime) else None


def parse_time(value: object) -> datetime | None:
    """Return a time that the worker wrote, in UTC if it has no zone; None if it is not a time."""
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
