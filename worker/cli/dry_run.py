"""`dead-letters requeue --dry-run`: what would become of each selected dead letter."""

from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from worker.broker.dead_letter_queue import Selection, dead_letter_queue
from worker.broker.dead_letters import DeadLetter
from worker.broker_settings import address_of, topology_of
from worker.cli.output import plain, print_json, say, table
from worker.cli.selecting import summary
from worker.deliveries import Delivery
from worker.preview import Preview, preview
from worker.projections import load
from worker.settings import Settings
from worker.store.connection import Reader

SKIPPED = "skipped"


async def dry_run(
    settings: Settings,
    wanted: Selection,
    limit: int | None,
    is_skipped: Callable[[DeadLetter], bool],
    *,
    as_json: bool,
) -> None:
    """Project each selected letter by itself on a copy of its event, and print what comes of it."""
    counts: Counter[str] = Counter()
    documents: list[dict[str, Any]] = []
    registry = load()
    async with AsyncExitStack() as stack:
        # Before the worker's first start there is no database, and no event has a row.
        reader = None
        if settings.database.exists():
            reader = await stack.enter_async_context(Reader(settings.database))
        queue = await stack.enter_async_context(
            dead_letter_queue(address_of(settings), topology_of(settings))
        )
        async for letter in queue.letters(wanted):
            if is_skipped(letter):
                document = {**summary(letter), "outcome": SKIPPED}
            elif counts.total() - counts[SKIPPED] == limit:
                break
            else:
                delivery = _delivery(letter)
                seen = await preview(reader, registry, delivery, settings.max_message_bytes)
                document = {**summary(letter), **_told(seen)}
            counts[document["outcome"]] += 1
            documents.append(document)
            if not as_json:
                _print(document)
                documents.clear()
    if as_json:
        print_json(documents)
    else:
        told = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
        say(f"Of {queue.count:,} dead letters: {told or 'none selected'}. Nothing was changed.")


def _delivery(letter: DeadLetter) -> Delivery:
    return Delivery(
        body=letter.body,
        routing_key=letter.routing_key,
        content_type=letter.content_type,
    )


def _told(seen: Preview) -> dict[str, Any]:
    rejected = seen.outcome.rejected
    return {
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
