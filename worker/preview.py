"""What a message would do if it arrived now: the projector runs on a copy of its event in memory.

For `requeue --dry-run`. Today's handlers fold the copy from the live log into a private database.
Nothing is written anywhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worker.deliveries import Delivery, Outcome, Rejected
from worker.messages import AnyMessage, Arrival, decode
from worker.projector import Projector
from worker.rebuild import create_tables
from worker.registry import Registry
from worker.scratch import ScratchStream
from worker.store import engines
from worker.store.database import Database, Writer
from worker.store.log import Entry, Key
from worker.store.statements import Row

TableRows = Mapping[str, Mapping[str, object] | None]
"""Table -> an event's row in it, or None."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What would happen to a message and to its event's rows."""

    outcome: Outcome
    before: TableRows
    after: TableRows
    """Both are empty if the delivery cannot be decoded, because it then belongs to no event."""


async def preview(
    source: Database | None, registry: Registry, delivery: Delivery, max_message_bytes: int
) -> Preview:
    """Project a delivery onto a copy of its event; `source` is the live database, if any."""
    message = decode(registry.wire, delivery, max_message_bytes)
    async with engines.scratch() as scratch:
        await create_tables(scratch, registry)
        if source is not None and not isinstance(message, Rejected):
            async for entries in source.history(message.event_id):
                await _copy(scratch, registry, message.event_id, entries)
        before = await _rows(scratch, registry, message)
        (outcome,) = await Projector(registry, scratch).project([Arrival(delivery, message)])
        return Preview(outcome, before, await _rows(scratch, registry, message))


async def _copy(scratch: Writer, registry: Registry, event_id: str, entries: Sequence[Row]) -> None:
    """Append part of the event's stream to the copy's log and fold it."""
    async with scratch.transaction() as tx:
        opened = (await tx.streams([event_id]))[event_id]
        tx.append([_entry(opened.key, row) for row in entries])
        await ScratchStream(registry, tx, event_id).apply(entries)


def _entry(stream: Key, row: Row) -> Entry:
    message_id, sequence, occurred_at, kind, is_late, appended_at, body = row
    return (stream, message_id, sequence, occurred_at, kind, is_late, appended_at, body)


async def _rows(
    scratch: Writer, registry: Registry, message: AnyMessage | Rejected
) -> dict[str, Mapping[str, object] | None]:
    if isinstance(message, Rejected):
        return {}
    async with scratch.transaction() as tx:
        found = {table: await tx.rows_of([table], message.event_id) for table in registry.versions}
    return {table: rows[0] if rows else None for table, rows in found.items()}
