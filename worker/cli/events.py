"""`show` and `list`: one event, or the events of a chat."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

import typer

from worker.cli.app import AsJson, app
from worker.cli.output import complain, print_json, say, table
from worker.history import History, Step, history
from worker.messages import canonical_json
from worker.projections import load
from worker.projections.events import (
    Status,
    get_event,
    list_active_events,
    list_events_in_status,
)
from worker.reader import Reader
from worker.settings import Settings, load_settings

COLUMNS = ("event_id", "kind", "status", "planned_for", "started_at", "completed_at", "updated_at")


@app.command()
def show(
    event_id: Annotated[str, typer.Argument(help="The event's id.")],
    *,
    limit: Annotated[
        int,
        typer.Option(min=1, help="Maximum number of messages to show; the last ones are shown."),
    ] = 100,
    show_all: Annotated[bool, typer.Option("--all", help="Show all messages.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show an event's row, and the effect of each of the last messages of its stream."""
    row, found = asyncio.run(_read(load_settings(), event_id, None if show_all else limit))
    steps = found.steps
    if not steps:
        complain(
            f"The log holds no message of event {event_id!r}.",
            "check that the event was published, and that the worker is not behind.",
        )
        raise typer.Exit(1)
    if as_json:
        print_json(
            {
                "row": row,
                "messages": found.messages,
                "history": [_marked(step) for step in steps],
            }
        )
        return
    if row is None:
        say(f"Event {event_id} has no row, because no message has planned it.")
    else:
        cells = ((c, canonical_json(v) if c == "props" else v) for c, v in row.items())
        table(("column", "value"), cells)
    say("")
    if len(steps) < found.messages:
        say(f"The last {len(steps):,} of {found.messages:,} messages (use --all to show them all):")
    columns = ("sequence", "occurred_at", "kind", "mark", "status after", "id", "appended_at")
    table(
        columns,
        (
            (s.sequence, s.occurred_at, s.kind, _mark(s), s.status, s.id, s.appended_at)
            for s in steps
        ),
    )


@app.command("list")
def list_(
    chat_id: Annotated[str, typer.Argument(help="The chat's id.")],
    *,
    status: Annotated[
        Status | None, typer.Option(help="Only events in this status.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List a chat's planned and active events, or those in one status, in planning order."""
    events = asyncio.run(_list(load_settings(), chat_id, status))
    if as_json:
        print_json(events)
    elif events:
        table(COLUMNS, [[event[column] for column in COLUMNS] for event in events])
    else:
        say(f"Chat {chat_id} has no {status or 'planned or active'} events.")


async def _read(
    settings: Settings, event_id: str, limit: int | None
) -> tuple[dict[str, Any] | None, History]:
    async with Reader(settings.store) as reader:
        row = await get_event(reader, event_id)
        return row, await history(reader.database, load(), event_id, limit)


async def _list(settings: Settings, chat_id: str, status: Status | None) -> list[dict[str, Any]]:
    async with Reader(settings.store) as reader:
        if status is None:
            return await list_active_events(reader, chat_id)
        return await list_events_in_status(reader, chat_id, status)


def _mark(step: Step) -> str:
    effect = "applied" if step.has_effect else "without effect"
    if step.failure is not None:
        effect = f"fails ({step.failure})"
    return f"{effect}, late" if step.is_late else effect


def _marked(step: Step) -> dict[str, Any]:
    return {**asdict(step), "mark": _mark(step)}
