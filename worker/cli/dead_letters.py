"""`dead-letters`: the messages that were rejected, and why."""

import asyncio
import itertools
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from worker.broker.dead_letter_queue import Selection, dead_letter_queue
from worker.broker.dead_letters import DeadLetter
from worker.broker_settings import address_of, topology_of
from worker.cli.app import AsJson, app
from worker.cli.output import complain, plain, print_json, print_raw, say, table
from worker.cli.requeue import discard, requeue
from worker.cli.selecting import ByAge, ByKind, ByReason, none_matches, selection, summary, written
from worker.plurals import counted
from worker.settings import load_settings

LISTED = 100
COLUMNS = ("number", "reason", "kind", "id", "rejected_at", "requeued", "bytes", "detail")

dead_letters = typer.Typer(
    name="dead-letters",
    help="List, show, requeue or discard the messages that were rejected.",
    no_args_is_help=True,
)
app.add_typer(dead_letters)
dead_letters.command()(requeue)
dead_letters.command()(discard)


class Grouping(StrEnum):
    """What a list can be grouped by."""

    REASON = "reason"
    KIND = "kind"


@dead_letters.command("list")
def list_(
    *,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help=f"Maximum number to list (default: {LISTED}) or to count (default: all).",
        ),
    ] = None,
    group_by: Annotated[
        Grouping | None,
        typer.Option(help="Count the dead letters by this, instead of listing them."),
    ] = None,
    reason: ByReason = None,
    kind: ByKind = None,
    older_than: ByAge = None,
    as_json: AsJson = False,
) -> None:
    """List the dead letters, oldest first; they all stay in their queue."""
    wanted = selection(None, reason, kind, older_than)
    rows: list[dict[str, Any]] = []
    groups: dict[str | None, dict[str, Any]] = {}
    numbers = itertools.count(1)
    most = limit or (LISTED if group_by is None else None)

    def add(letter: DeadLetter) -> bool:
        if group_by is None:
            rows.append(summary(letter))
        else:
            _count(groups, group_by, letter)
        return next(numbers) == most

    waiting = asyncio.run(_look(wanted, add))
    if group_by is not None:
        rows = _largest(groups, group_by)
    if as_json:
        print_json(rows)
    elif not rows:
        say(none_matches(waiting))
    else:
        columns = COLUMNS if group_by is None else tuple(rows[0])
        table(columns, [[row[column] for column in columns] for row in rows])
        if waiting > len(rows) == LISTED and limit is None:
            say(
                f"The queue has {waiting:,} dead letters. Use --limit to list more of them, or "
                "--group-by to count them."
            )


@dead_letters.command("show")
def show(
    which: Annotated[
        str,
        typer.Argument(
            metavar="NUMBER|ID", help="The dead letter's number in the list, or its message id."
        ),
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: the reason, its headers, and its body as it was published."""
    letter = _find(which)
    document = summary(letter) | {
        "routing_key": letter.routing_key,
        "message_id": letter.message_id,
        "content_type": letter.content_type,
        "headers": plain(letter.headers),
    }
    text = plain({"body": letter.body})["body"]
    if as_json:
        print_json(document | {"body": text})
        return
    table(("field", "value"), document.items())
    say("")
    print_raw(str(text))


def _find(which: str) -> DeadLetter:
    is_number = which.isascii() and which.isdigit()
    found: DeadLetter | None = None

    def take(letter: DeadLetter) -> bool:
        nonlocal found
        if not is_number or str(letter.number) == which:
            found = letter
        return found is not None

    waiting = asyncio.run(_look(Selection() if is_number else Selection(id=which), take))
    if found is None:
        wanted = f"number {which}" if is_number else f"the id {which!r}"
        complain(
            f"No dead letter has {wanted}; the queue has {counted(waiting, 'dead letter')}.",
            "run 'projection-worker dead-letters list'.",
        )
        raise typer.Exit(1)
    return found


async def _look(wanted: Selection, add: Callable[[DeadLetter], bool]) -> int:
    """Pass the selected letters to `add` until it returns true; return the size of the queue."""
    settings = load_settings()
    async with dead_letter_queue(address_of(settings), topology_of(settings)) as queue:
        async for letter in queue.letters(wanted):
            if add(letter):
                break
        return queue.count


def _largest(groups: dict[str | None, dict[str, Any]], group_by: Grouping) -> list[dict[str, Any]]:
    """Return the groups, the largest first; if there are too many, merge the smallest into one."""
    rows = sorted(groups.values(), key=lambda group: -group["count"])
    rest = rows[LISTED:]
    if not rest:
        return rows
    return [
        *rows[:LISTED],
        {
            group_by.value: f"({len(rest):,} others)",
            "count": sum(row["count"] for row in rest),
            "oldest": min((row["oldest"] for row in rest if row["oldest"]), default=None),
            "newest": max((row["newest"] for row in rest if row["newest"]), default=None),
        },
    ]


def _count(
    groups: dict[str | None, dict[str, Any]], group_by: Grouping, letter: DeadLetter
) -> None:
    key = letter.reason if group_by is Grouping.REASON else letter.kind
    at = written(letter.rejected_at)
    group = groups.setdefault(key, {group_by.value: key, "count": 0, "oldest": at, "newest": at})
    group["count"] += 1
    if at is not None:
        group["oldest"] = min(group["oldest"] or at, at)
        group["newest"] = max(group["newest"] or at, at)
