"""`rebuild`: fold the log again, and replace the live rows or only compare them."""

import asyncio
from typing import Annotated

import typer

from worker.cli.app import AsJson, app
from worker.cli.output import plain, print_json, progress_bar, say, table
from worker.plurals import counted
from worker.projections import load
from worker.rebuild import Audit, Progress, audit
from worker.rebuild import rebuild as rebuild_tables
from worker.registry import Registry
from worker.settings import load_settings
from worker.store.engines import store_of
from worker.store.fresh_tables import Difference
from worker.store.store import Store


@app.command()
def rebuild(
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only compare; exit 1 if rows differ.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=0, help="Maximum number of differing events to show.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Fold the whole log into new tables, and replace the live tables with them.

    Readers see the old rows until the new ones are complete; an interrupted rebuild changes
    nothing. Workers on PostgreSQL may run meanwhile; the worker of an SQLite file must be stopped,
    unless --verify only compares.
    """
    store = store_of(load_settings().store)
    registry = load()
    with progress_bar("Folding messages") as bar:
        if verify:
            found = asyncio.run(audit(store, registry, bar.show, limit))
        else:
            found = asyncio.run(_rebuild(store, registry, bar.show, limit))
    if as_json:
        print_json(_document(found))
    else:
        _show(found, verify=verify)
    if verify and found.differing:
        raise typer.Exit(1)


async def _rebuild(store: Store, registry: Registry, progress: Progress, limit: int) -> Audit:
    async with store.reader():
        # Raises if there is no database: a writer would make one.
        pass
    with store.lock() as lock:
        async with store.writer(lock) as writer:
            return await rebuild_tables(writer, registry, progress, limit)


def _show(found: Audit, *, verify: bool) -> None:
    if found.differences:
        columns = ("table", "event_id", "column", "live", "folded")
        table(columns, [cells for each in found.differences for cells in _cells(each)])
    folded = f"Folded {counted(found.messages, 'message')} into {counted(found.rows, 'row')}"
    differing = f"the live rows of {counted(found.differing, 'event')}"
    if not found.differing:
        say(f"{folded}; the live rows {'are' if verify else 'were'} the same.")
    elif verify:
        say(f"{folded}; {differing} differ. Run 'projection-worker rebuild' to correct them.")
    else:
        say(f"{folded}; {differing} differed and have been corrected.")
    for statement in found.dropped_indexes:
        say(f"Dropped with the table of another version: {statement}")


def _cells(difference: Difference) -> list[tuple[object, ...]]:
    live, folded = difference.live or {}, difference.folded or {}
    return [
        (difference.table, difference.event_id, name, live.get(name), folded.get(name))
        for name in {**folded, **live}
        if name != "event_id" and live.get(name) != folded.get(name)
    ]


def _document(found: Audit) -> dict[str, object]:
    return {
        "messages": found.messages,
        "rows": found.rows,
        "differing": found.differing,
        "dropped_indexes": found.dropped_indexes,
        "differences": [
            {
                "table": each.table,
                "event_id": each.event_id,
                "live": plain(each.live) if each.live else None,
                "folded": plain(each.folded) if each.folded else None,
            }
            for each in found.differences
        ],
    }
