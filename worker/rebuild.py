"""Rebuild and audit: fold the whole log into fresh tables, compare, and put them in place.

Uses the one fold that the projector uses (fold.py). Promise: readers see the old rows until the
new ones are complete, and a rebuild that is interrupted has changed nothing.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from pydantic import ValidationError

from worker.errors import StoreUnavailable, StoreUnusable
from worker.fold import Turns, fold, stored
from worker.registry import Registry
from worker.store.database import Database, Writer
from worker.store.failures import Failures, HandlersFailed
from worker.store.fresh_tables import Difference, FreshTables
from worker.store.log import BEFORE_ALL, Key
from worker.store.store import Store
from worker.store.tables import Schema

Progress = Callable[[int, int], None]
"""Called with the messages folded so far, and all there are."""


@dataclass(frozen=True, slots=True)
class Audit:
    """How the live rows compare with the fold of the log."""

    messages: int
    rows: int
    differing: int
    """Events whose rows differ."""
    differences: tuple[Difference, ...]
    """The first of them."""
    dropped_indexes: tuple[str, ...] = ()
    """The statements of indexes that were on the old tables and are not on the new ones."""


def reason_to_rebuild(noted: Mapping[str, int], registry: Registry) -> str | None:
    """Return why the rows of a file that notes these versions must be rebuilt; None if not."""
    versions = registry.versions
    changed = sorted(
        table for table in {*noted, *versions} if noted.get(table) != versions.get(table)
    )
    if not changed:
        return None
    return "; ".join(
        f"{table} was folded by version {noted.get(table, 'none')}, this worker has "
        f"{versions.get(table, 'none')}"
        for table in changed
    )


def require_not_older(noted: Mapping[str, int], registry: Registry, named: str) -> None:
    """Raise `StoreUnavailable` if a newer release has folded the rows.

    Where several workers write a database, one that is older must not put its rows back by itself:
    in a rolling deployment, the two releases would take turns.
    """
    if any(version > registry.versions.get(table, 0) for table, version in noted.items()):
        raise StoreUnavailable(
            f"A newer release has folded the rows ({named}: {reason_to_rebuild(noted, registry)}).",
            "start that release instead of this one; or, to roll back, stop its workers and run "
            "'projection-worker rebuild' with this one.",
        )


async def require_known_kinds(source: Database | FreshTables, registry: Registry) -> None:
    """Raise `StoreUnusable` if the log holds messages of a kind that has no handler.

    A newer release has put them there. Without their handlers, their streams cannot be folded: each
    late message of them would be dead-lettered, and a rebuild would fail.
    """
    if unknown := await source.kinds() - registry.handlers.keys():
        raise StoreUnusable(
            f"The log holds messages of kinds that this release does not know "
            f"({source.named}: {', '.join(sorted(unknown))}).",
            "run the release that knows them; docs/upgrade.md, 'Upgrade and roll back', says more.",
        )


async def require_schemas(source: Database, registry: Registry) -> None:
    """Raise `RegistrationError` for a table that this database could not keep."""
    with registry.placing_mistakes():
        await source.require_schemas(_schema(registry))


async def require_same_columns(source: Database, registry: Registry) -> None:
    """Raise `StoreUnusable` if a schema was changed and its version was not."""
    await source.require_columns(_schema(registry))


async def create_tables(writer: Writer, registry: Registry) -> None:
    """Create the projections' empty tables in a database that has none yet."""
    await writer.create_tables(_schema(registry), registry.versions)


async def rebuild(
    writer: Writer, registry: Registry, progress: Progress, examples: int = 0
) -> Audit:
    """Put the fold of the log in place of the live rows; return how many of them differed.

    The caller holds the writer's lock. Raises `StoreUnusable` for a message in the log that
    cannot be folded, naming it, and `StoreUnavailable` if the log is no longer the one that was
    folded, because somebody else has committed meanwhile: the live rows stay then.
    """
    await require_schemas(writer, registry)
    await require_known_kinds(writer, registry)
    async with await writer.rebuilding(_schema(registry)) as fresh:
        audit = await _fold_log(fresh, registry, progress, examples)
        await _fold(fresh, registry, fresh.grown_streams())
        gone = await fresh.put_in_place(registry.versions)
    return replace(audit, dropped_indexes=gone)


async def audit(store: Store, registry: Registry, progress: Progress, examples: int) -> Audit:
    """Compare the live rows with the fold of the log, on one snapshot, and change nothing.

    `examples` is the greatest number of differences that are returned in full.
    """
    with registry.placing_mistakes():
        async with store.auditing(_schema(registry)) as fresh:
            await require_known_kinds(fresh, registry)
            return await _fold_log(fresh, registry, progress, examples)


async def _fold_log(
    fresh: FreshTables, registry: Registry, progress: Progress, examples: int
) -> Audit:
    messages = await fresh.count_messages()
    await _fold(fresh, registry, fresh.streams(), lambda folded: progress(folded, messages))
    return await _compare(fresh, registry, messages, examples)


async def _fold(
    fresh: FreshTables,
    registry: Registry,
    streams: AsyncIterator[dict[Key, str]],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Fold streams into the fresh tables; `progress` is called with the messages folded so far."""
    folded = 0
    turns = Turns()
    events: dict[Key, str] = {}
    try:
        async for events in streams:
            async for piece in fresh.tx.pieces(dict.fromkeys(events, BEFORE_ALL)):
                for key, bodies in piece.items():
                    read = stored(registry, fresh.tx, events[key], bodies)
                    await fold(registry, fresh.tx, read, turns)
                    folded += len(read)
                # Statements run with the next read, and those that fail do not stop the others.
                fresh.tx.register.require_no_failure()
                progress(folded)
        await fresh.tx.flush()
    except HandlersFailed as error:
        # Statements of earlier streams may still wait, and fail as well.
        with suppress(HandlersFailed):
            await fresh.tx.flush()
        raise _unfoldable(fresh.tx.register.of_handlers, events) from error


def _unfoldable(failures: Failures, events: Mapping[Key, str]) -> StoreUnusable:
    """Return the error that names the first stream that fails; `events` are those read last."""
    # An event that is not among those read last failed earlier.
    places = {event_id: place for place, event_id in enumerate(events.values(), 1)}
    event_id = min(failures, key=lambda each: places.get(each, 0))
    failure = failures[event_id]
    cause = (
        failure.error.errors(include_url=False, include_input=False)
        if isinstance(failure.error, ValidationError)
        else failure.error
    )
    return StoreUnusable(
        f"The log cannot be folded: the stream of event {event_id!r} fails "
        f"({type(failure.error).__name__}: {cause}).",
        "see 'projection-worker show' for the stream; run the version that wrote it, or correct "
        "its handlers.",
    )


async def _compare(fresh: FreshTables, registry: Registry, messages: int, examples: int) -> Audit:
    rows = differing = 0
    shown: list[Difference] = []
    for projection in registry.projections:
        event_ids = await fresh.differing(projection.table)
        differing += len(event_ids)
        rows += await fresh.count_rows(projection.table)
        shown += [
            await fresh.difference(projection.table, event_id)
            for event_id in event_ids[: examples - len(shown)]
        ]
    return Audit(messages, rows, differing, tuple(shown))


def _schema(registry: Registry) -> Schema:
    return {projection.table: projection.schema for projection in registry.projections}
