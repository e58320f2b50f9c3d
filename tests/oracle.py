"""The rules of the events table, implemented a second time: what the rows must be.

This module imports nothing from the worker and shares no code with it. It takes messages as plain
dictionaries, as published, in the order of their first arrival (which matters only if one id has
two contents).
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

Message = dict[str, Any]
Row = tuple[Any, ...]

COLUMNS = (
    "event_id", "chat_id", "kind", "status", "props_json", "planned_for",
    "started_at", "completed_at", "created_at", "updated_at",
)  # fmt: skip
ENDINGS = {
    "event_completed": "completed",
    "event_cancelled": "cancelled",
    "event_expired": "expired",
}


def utc(text: str | None) -> str | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def position(message: Message) -> tuple[int, str, str]:
    return (message.get("sequence", 0), utc(message["occurred_at"]) or "", message["id"])


def expected_rows(messages: Iterable[Message]) -> list[Row]:
    """Return the table, ordered by event_id."""
    streams: dict[str, dict[str, Message]] = {}
    for message in messages:
        stream = streams.setdefault(message["payload"]["event_id"], {})
        stream.setdefault(message["id"], message)
    rows = []
    for event_id in sorted(streams):
        row: dict[str, Any] = {}
        for message in sorted(streams[event_id].values(), key=position):
            step(row, message)
        if row:
            rows.append(tuple(row[column] for column in COLUMNS))
    return rows


def step(row: dict[str, Any], message: Message) -> None:
    kind, payload, at = message["kind"], message["payload"], utc(message["occurred_at"])
    if kind == "event_planned":
        if not row:
            row.update(
                event_id=payload["event_id"], chat_id=payload["chat_id"], kind=payload["kind"],
                status="planned", planned_for=utc(payload.get("planned_for")), started_at=None,
                props_json=json.dumps(
                    payload.get("props", {}),
                    sort_keys=True, ensure_ascii=False, separators=(",", ":"),
                ),
                completed_at=None, created_at=at, updated_at=at,
            )  # fmt: skip
        return
    if not row:
        return
    is_over = row["status"] in ENDINGS.values()
    if kind == "event_status_reverted":
        row.update(status=payload["prior_status"], updated_at=at)
    elif kind == "event_started" and not is_over:
        row.update(status="active", started_at=utc(payload.get("started_at")), updated_at=at)
    elif kind in ENDINGS and not is_over:
        row.update(
            status=ENDINGS[kind], completed_at=utc(payload.get("completed_at")), updated_at=at
        )
