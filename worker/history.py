"""What each message of a stream did: the stream folded once more, message by message, in memory.

For `show`. Uses the handlers and the fold of the projector, on a database that nobody else sees.
"""

from dataclasses import dataclass

from worker.fold import fold
from worker.rebuild import create_tables
from worker.registry import Registry
from worker.store import log, tables
from worker.store.connection import Database, Writer

LOGGED = ("id", "kind", "sequence", "occurred_at", "appended_at")


@dataclass(frozen=True, slots=True)
class Step:
    """One message of a stream, in the order of position."""

    id: str
    kind: str
    sequence: int
    occurred_at: str
    appended_at: str
    has_effect: bool
    """Whether it changed the event's row."""
    is_late: bool
    """Whether it arrived after a message that comes after it."""
    status: str | None
    """The row's status after it; None without a row, or in a table without that column."""
    failure: str | None
    """Why today's handlers cannot apply it, if they cannot."""


async def history(source: Database, registry: Registry, event_id: str) -> list[Step]:
    """Give the steps of one event's stream; empty if the log does not know the event."""
    entries = await log.history(source, event_id)
    steps: list[Step] = []
    async with Writer(":memory:") as scratch:
        await create_tables(scratch, registry)
        before: list[dict[str, object]] = []
        for entry in entries:
            failure = None
            try:
                async with scratch.transaction() as tx:
                    message = registry.wire.validate_json(entry["body"])
                    await fold(registry, tx, event_id, [message])
            except Exception as error:  # noqa: BLE001 - handlers may raise anything
                failure = f"{type(error).__name__}: {error}"
            async with scratch.transaction() as tx:
                after = await tables.rows_of(tx, registry.versions, event_id)
            statuses = [row["status"] for row in after if "status" in row]
            steps.append(
                Step(
                    **{name: entry[name] for name in LOGGED},
                    has_effect=after != before,
                    is_late=bool(entry["is_late"]),
                    status=str(statuses[0]) if statuses else None,
                    failure=failure,
                )
            )
            before = after
    return steps
