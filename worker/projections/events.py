"""The events of chats: which are planned, which are active, and how the others ended.

The whole domain: payloads, handlers, the table and its queries. Knows nothing about delivery, order
or crashes; a handler says what one message means.
"""

import json
from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from worker.messages import Identifier, Message, Payload, Timestamp, canonical_json
from worker.reader import WITHIN_SECONDS, Reader
from worker.registry import on, projection
from worker.store.presence import PublishedMessage
from worker.store.statements import Row
from worker.store.transaction import Transaction

Status = Literal["planned", "active", "completed", "cancelled", "expired"]

# kind                    the row's status becomes    from
# event_planned           planned                     no row
# event_started           active                      planned, active
# event_completed         completed                   planned, active
# event_cancelled         cancelled                   planned, active
# event_expired           expired                     planned, active
# event_status_reverted   its prior_status            any

# The statuses are literals, as in the index: SQLite cannot match parameters against it.
ONGOING = """
    SELECT * FROM events WHERE chat_id = ? AND status IN ('planned', 'active')
    ORDER BY created_at, event_id
"""
IN_STATUS = """
    SELECT * FROM events WHERE chat_id = ? AND status = ?
    ORDER BY created_at, event_id
"""

projection(
    table="events",
    version=2,
    schema=(
        # With a rowid, rows are stored in the order of planning, so most messages find theirs on
        # one of the last pages. With the random event_id as the only key, nearly every message
        # would write another page.
        """
        CREATE TABLE events (
            event_id     TEXT NOT NULL PRIMARY KEY,
            chat_id      TEXT NOT NULL,
            kind         TEXT NOT NULL,  -- the event's own kind, not a message's
            status       TEXT NOT NULL,
            props_json   TEXT NOT NULL,
            planned_for  TEXT,
            started_at   TEXT,
            completed_at TEXT,           -- when it ended, however it ended
            created_at   TEXT NOT NULL,  -- occurred_at of the message that inserted the row
            updated_at   TEXT NOT NULL   -- occurred_at of the last message that changed it
        )
        """,
        # Without the status, which nearly every message changes: each change would write a page.
        "CREATE INDEX events_of_chat ON events (chat_id, created_at)",
        # For the most frequent query. It stays small, and SQLite prefers the newer of two indexes
        # that fit.
        """
        CREATE INDEX ongoing_of_chat ON events (chat_id, created_at)
        WHERE status IN ('planned', 'active')
        """,
    ),
)


class Planned(Payload):
    """An event is planned in a chat."""

    chat_id: Identifier
    kind: Identifier
    props: dict[str, Any] = Field(default_factory=dict)
    planned_for: Timestamp | None = None


class Started(Payload):
    """An event begins."""

    started_at: Timestamp | None = None


class Ended(Payload):
    """An event ends; the message's kind says whether it was completed, cancelled or has expired."""

    completed_at: Timestamp | None = None


class StatusReverted(Payload):
    """The turn that changed the status was regenerated; the status goes back to what it was."""

    prior_status: Status


@on("event_planned")
async def planned(tx: Transaction, message: Message[Planned]) -> None:
    event = message.payload
    await tx.execute(
        """
        INSERT INTO events (event_id, chat_id, kind, status, props_json, planned_for,
                            created_at, updated_at)
        VALUES (?, ?, ?, 'planned', ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING
        """,
        (
            event.event_id,
            event.chat_id,
            event.kind,
            canonical_json(event.props),
            event.planned_for,
            message.occurred_at,
            message.occurred_at,
        ),
    )


@on("event_started")
async def started(tx: Transaction, message: Message[Started]) -> None:
    await tx.execute(
        """
        UPDATE events SET status = 'active', started_at = ?, updated_at = ?
        WHERE event_id = ? AND status IN ('planned', 'active')
        """,
        (message.payload.started_at, message.occurred_at, message.event_id),
    )


@on("event_completed")
async def completed(tx: Transaction, message: Message[Ended]) -> None:
    await end(tx, message, "completed")


@on("event_cancelled")
async def cancelled(tx: Transaction, message: Message[Ended]) -> None:
    await end(tx, message, "cancelled")


@on("event_expired")
async def expired(tx: Transaction, message: Message[Ended]) -> None:
    await end(tx, message, "expired")


@on("event_status_reverted")
async def status_reverted(tx: Transaction, message: Message[StatusReverted]) -> None:
    await tx.execute(
        "UPDATE events SET status = ?, updated_at = ? WHERE event_id = ?",
        (message.payload.prior_status, message.occurred_at, message.event_id),
    )


async def end(tx: Transaction, message: Message[Ended], status: Status) -> None:
    """End an event that has not ended yet."""
    await tx.execute(
        """
        UPDATE events SET status = ?, completed_at = ?, updated_at = ?
        WHERE event_id = ? AND status IN ('planned', 'active')
        """,
        (status, message.payload.completed_at, message.occurred_at, message.event_id),
    )


async def get_event(
    reader: Reader, event_id: str, *, after: str | None = None, within: float = WITHIN_SECONDS
) -> dict[str, Any] | None:
    """Return the row of an event with `props` parsed, or None.

    `after` is the id of a message of this event; the row contains its effect. Waits and raises as
    `Reader.fetch_all` does.
    """
    published = () if after is None else ((event_id, after),)
    sql = "SELECT * FROM events WHERE event_id = ?"
    rows = await reader.fetch_all(sql, (event_id,), after=published, within=within)
    return _event(rows[0]) if rows else None


async def list_active_events(
    reader: Reader,
    chat_id: str,
    *,
    after: Collection[PublishedMessage] = (),
    within: float = WITHIN_SECONDS,
) -> list[dict[str, Any]]:
    """Return the planned and active events of a chat, in the order of planning.

    `after` are messages, each as the id of its event and its own; the rows contain their effects.
    Waits and raises as `Reader.fetch_all` does.
    """
    return _events(await reader.fetch_all(ONGOING, (chat_id,), after=after, within=within))


async def list_events_in_status(
    reader: Reader,
    chat_id: str,
    status: Status,
    *,
    after: Collection[PublishedMessage] = (),
    within: float = WITHIN_SECONDS,
) -> list[dict[str, Any]]:
    """Return the events of a chat that have this status, in the order of planning.

    `after` and `within` are those of `list_active_events`.
    """
    found = await reader.fetch_all(IN_STATUS, (chat_id, status), after=after, within=within)
    return _events(found)


def _events(rows: list[Row]) -> list[dict[str, Any]]:
    return [_event(row) for row in rows]


def _event(row: Row) -> dict[str, Any]:
    event = dict(row)
    event["props"] = json.loads(event.pop("props_json"))
    return event
