"""`dead-letters requeue --dry-run`: what would happen to each selected dead letter."""

from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from worker.broker.dead_letter_queue import Selection, dead_letter_queue
from worker.broker.dead_letters import DeadLetter
from worker.broker_settings import address_of, topology_of
from worker.cli.output import JsonList, plain, say, table
from worker.cli.selecting import none_matches, summary
from worker.deliveries import Delivery
from worker.plurals import counted
from worker.preview import preview
from worker.projections import load
from worker.registry import Registry
from worker.settings import Settings
from worker.store.database import Database
from worker.store.engines import store_of

SKIPPED = "skipped"


async def dry_run(
    settings: Settings,
    wanted: Selection,
    limit: int | None,
    is_skipped: Callable[[DeadLetter], bool],
    *,
    as_json: bool,
) -> None:
    """Project each selected letter by itself onto a copy of its event, and print the result."""
    counts: Counter[str] = Counter()
    printed = JsonList() if as_json else None
    async with AsyncExitStack() as stack:
        # There is no database before the worker's first start; then no event has a row.
        reader = None
        store = store_of(settings.store)
        if await store.exists():
            reader = await stack.enter_async_context(store.reader())
        queue = await stack.enter_async_context(
            dead_letter_queue(address_of(settings), topology_of(settings))
        )
        foresee = partial(_foresee, reader, load(), settings.max_message_bytes)
        async for letter in queue.letters(wanted):
            if is_skipped(letter):
                document = {**summary(letter), "outcome": SKIPPED}
            elif counts.total() - counts[SKIPPED] == limit:
                break
            else:
                document = await foresee(letter)
            counts[document["outcome"]] += 1
            printed.add(document) if printed else _print(document)
    if printed:
        printed.close()
    else:
        outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
        letters = counted(queue.count, "dead letter")
        said = f"Of {letters}: {outcomes}." if outcomes else none_matches(queue.count)
        say(f"{said} Nothing was changed.")


async def _foresee(
    reader: Database | None, registry: Registry, max_bytes: int, letter: DeadLetter
) -> dict[str, Any]:
    """Return what would happen to a letter, and to the rows of its event."""
    delivery = Delivery(
        body=letter.body,
        routing_key=letter.routing_key,
        content_type=letter.content_type,
    )
    seen = await preview(reader, registry, delivery, max_bytes)
    rejected = seen.outcome.rejected
    return {
        **summary(letter),
        "outcome": seen.outcome.verdict.value,
        "would_be": None
        if rejected is None
        else {"reason": rejected.reason.value, "detail": rejected.detail},
        "before": {table: row and plain(row) for table, row in seen.before.items()},
        "after": {table: row and plain(row) for table, row in seen.after.items()},
    }


def _print(document: dict[str, Any]) -> None:
    name = document["id"] or f"number {document['number']}"
    outcome = document["outcome"]
    if rejected := document.get("would_be"):
        outcome += f" again: {rejected['reason']}: {rejected['detail']}"
    say(f"{name}  ({document['reason']}, {document['kind'] or 'no kind'}): {outcome}")
    changes = []
    for name, after in document.get("after", {}).items():
        before = document["before"][name] or {}
        changes += [
            (f"{name}.{column}", before.get(column), value)
            for column, value in (after or {}).items()
            if not before or before.get(column) != value
        ]
    if changes:
        table(("column", "before", "after"), changes)
