"""What each message of a stream did: folds the stream again, message by message.

For `show`. Uses the projector's handlers and fold on a private database.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.rebuild import create_tables
from worker.registry import Registry
from worker.scratch import ScratchStream
from worker.store import engines
from worker.store.database import Database
from worker.store.statements import Row

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
    """Whether it arrived after a message that follows it in the stream."""
    status: str | None
    """The row's status after the message; None if there is no row or no such column."""
    failure: str | None
    """Why today's handlers cannot apply the message, or None."""


@dataclass(frozen=True, slots=True)
class History:
    """An event's stream and its last steps."""

    messages: int
    """How many messages the log holds for the event."""
    steps: tuple[Step, ...]


async def history(
    source: Database, registry: Registry, event_id: str, limit: int | None
) -> History:
    """Return the last `limit` steps of one event's stream, or all of them without a limit.

    There are none if the log has no messages of the event.
    """
    messages = await source.count(event_id)
    hidden = 0 if limit is None else max(0, messages - limit)
    steps: list[Step] = []
    async with engines.scratch() as scratch:
        await create_tables(scratch, registry)
        async with scratch.transaction() as tx:
            stream = ScratchStream(registry, tx, event_id)
            async for entries in source.history(event_id):
                await stream.apply(entries[:hidden])
                steps += await _steps(stream, entries[hidden:])
                hidden = max(0, hidden - len(entries))
    return History(messages, tuple(steps))


async def _steps(stream: ScratchStream, entries: Sequence[Row]) -> list[Step]:
    """Fold messages and return what each of them did."""
    steps: list[Step] = []
    before = await stream.rows() if entries else []
    for entry in entries:
        failure = await stream.failure([entry])
        after = before if failure else await stream.rows()
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
