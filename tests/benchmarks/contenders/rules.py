"""The rules of the events table as an application would write them, without a log.

Shared by the contenders that commit each message. There is one statement for each message, and
nothing before or after it: duplicates are not found, and a late message is applied when it arrives.
"""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import aiosqlite
from pydantic import BaseModel, Field

Status = Literal["planned", "active", "completed", "cancelled", "expired"]


class Planned(BaseModel):
    event_id: str
    chat_id: str
    kind: str
    props: dict[str, Any] = {}
    planned_for: datetime | None = None


class Started(BaseModel):
    event_id: str
    started_at: datetime | None = None


class Ended(BaseModel):
    event_id: str
    completed_at: datetime | None = None


class Reverted(BaseModel):
    event_id: str
    prior_status: Status


class Envelope(BaseModel):
    id: str
    occurred_at: datetime
    sequence: int = 0


class PlannedMessage(Envelope):
    kind: Literal["event_planned"]
    payload: Planned


class StartedMessage(Envelope):
    kind: Literal["event_started"]
    payload: Started


class EndedMessage(Envelope):
    kind: Literal["event_completed", "event_cancelled", "event_expired"]
    payload: Ended


class RevertedMessage(Envelope):
    kind: Literal["event_status_reverted"]
    payload: Reverted


AnyMessage = Annotated[
    PlannedMessage | StartedMessage | EndedMessage | RevertedMessage,
    Field(discriminator="kind"),
]

PLAN = """
    INSERT INTO events (event_id, chat_id, kind, status, props_json, planned_for, created_at,
                        updated_at)
    VALUES (?, ?, ?, 'planned', ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING
"""
START = """
    UPDATE events SET status = 'active', started_at = ?, updated_at = ?
    WHERE event_id = ? AND status IN ('planned', 'active')
"""
END = """
    UPDATE events SET status = ?, completed_at = ?, updated_at = ?
    WHERE event_id = ? AND status IN ('planned', 'active')
"""
REVERT = "UPDATE events SET status = ?, updated_at = ? WHERE event_id = ?"


async def open_database(path: str) -> aiosqlite.Connection:
    """Open the file so that commits are as safe as the worker's, and each statement is committed.

    BEGIN and COMMIT around a single statement would cost two more trips to SQLite's thread.
    """
    connection = await aiosqlite.connect(path, isolation_level=None)
    await connection.execute("PRAGMA journal_mode = WAL")
    await connection.execute("PRAGMA synchronous = FULL")
    return connection


async def apply(connection: aiosqlite.Connection, message: AnyMessage) -> None:
    """Update the row of the message's event, and commit."""
    await connection.execute(*statement(message))


def statement(message: AnyMessage) -> tuple[str, tuple[str | None, ...]]:
    at, payload = utc(message.occurred_at), message.payload
    match payload:
        case Planned():
            props = json.dumps(
                payload.props, sort_keys=True, ensure_ascii=False, separators=(",", ":")
            )
            planned_for = utc(payload.planned_for)
            event = (payload.event_id, payload.chat_id, payload.kind)
            return PLAN, (*event, props, planned_for, at, at)
        case Started():
            return START, (utc(payload.started_at), at, payload.event_id)
        case Ended():
            status = message.kind.removeprefix("event_")
            return END, (status, utc(payload.completed_at), at, payload.event_id)
        case Reverted():
            return REVERT, (payload.prior_status, at, payload.event_id)


def utc(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
