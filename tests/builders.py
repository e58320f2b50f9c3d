"""One-line builders of wire messages, for tests that state a history: `planned("e-1")`.

Every builder takes fields of the envelope and of the payload by name. Fields that are left out get
distinct values, so that messages differ unless a test makes them equal.
"""

import itertools
import json
from typing import Any

Message = dict[str, Any]

_numbers = itertools.count(1)


def message(kind: str, payload: dict[str, Any], **envelope: Any) -> Message:
    """Return a wire message; `sequence` rises with every call unless it is given."""
    number = next(_numbers)
    built = {
        "id": f"m-{number:06}",
        "kind": kind,
        "occurred_at": f"2026-04-27T10:{number // 60 % 60:02}:{number % 60:02}.000Z",
        "sequence": number,
        "payload": payload,
    }
    return built | envelope


def planned(
    event_id: str,
    *,
    chat_id: str = "chat-1",
    payload: dict[str, Any] | None = None,
    **envelope: Any,
) -> Message:
    whole = {"event_id": event_id, "chat_id": chat_id, "kind": "reminder", **(payload or {})}
    return message("event_planned", whole, **envelope)


def started(event_id: str, **envelope: Any) -> Message:
    at = "2026-04-27T11:00:00Z"
    return message("event_started", {"event_id": event_id, "started_at": at}, **envelope)


def completed(event_id: str, **envelope: Any) -> Message:
    return _ended("event_completed", event_id, envelope)


def cancelled(event_id: str, **envelope: Any) -> Message:
    return _ended("event_cancelled", event_id, envelope)


def expired(event_id: str, **envelope: Any) -> Message:
    return _ended("event_expired", event_id, envelope)


def reverted(event_id: str, prior_status: str, **envelope: Any) -> Message:
    payload = {"event_id": event_id, "prior_status": prior_status}
    return message("event_status_reverted", payload, **envelope)


def body(built: Message) -> bytes:
    """Return the bytes that a publisher would send."""
    return json.dumps(built).encode()


def _ended(kind: str, event_id: str, envelope: Message) -> Message:
    payload = {"event_id": event_id, "completed_at": "2026-04-27T12:00:00Z"}
    return message(kind, payload, **envelope)
