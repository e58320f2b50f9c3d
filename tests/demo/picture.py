"""Shows what happened: numbers, one chat, one event, and the proof."""

import json
from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.demo.load import Measured
from tests.demo.proof import Claim, Ending
from tests.demo.readmodel import ReadModel
from tests.demo.story import Story
from tests.oracle import COLUMNS

WIDTH = 100
MOST_LISTED = 5
MOST_DIFFERENCES = 5


def console() -> Console:
    """Return the console for the demo: as wide as the terminal, or 100 columns of plain text."""
    plain = Console(highlight=False, markup=False)
    return plain if plain.is_terminal else Console(highlight=False, markup=False, width=WIDTH)


def show_numbers(on: Console, story: Story, ending: Ending) -> None:
    """Print the counts."""
    measured, model = ending.measured, ending.model
    taken_again = sum(kill.redelivered for kill in measured.kills)
    copies = len(ending.dead_letters) - ending.broken
    table = plain_table()
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for name, number, meaning in (
        (
            "published",
            measured.confirmed,
            f"{len(story.messages):,} messages, {story.copies:,} of them twice, and "
            f"{len(story.broken):,} broken ones; each confirmed",
        ),
        ("redelivered", taken_again, "held unacked by a worker when it was killed"),
        ("applied", len(model.log), "messages in the log, each once"),
        (
            "  late",
            model.late,
            "arrived after messages that they precede; applied at their position",
        ),
        ("  orphans", model.orphans, "of events that were never planned: in the log, but no row"),
        ("duplicates", measured.reported["duplicate"], _duplicates(ending)),
        (
            "dead letters",
            len(ending.dead_letters),
            f"{copies} of them twice, because of a kill between confirm and ack"
            if copies
            else "broken messages",
        ),
    ):
        table.add_row(name, f"{number:,}", meaning)
    for reason, detail, number in _reasons(ending):
        table.add_row(f"  {reason}", str(number), Text(detail, no_wrap=True, overflow="ellipsis"))
    table.add_row("rows", f"{len(model.rows):,}", _statuses(model))
    table.add_row("seconds", f"{measured.work_seconds:.1f}", _seconds(measured))
    show_title(on, "What was counted")
    show_table(on, table)


def worth_seeing(model: ReadModel) -> tuple[str, str]:
    """Return a chat with a few events that are not over, and one of them with a history."""
    ongoing: dict[str, list[str]] = {}
    chat_of = {}
    for row in model.rows:
        event = dict(zip(COLUMNS, row, strict=True))
        chat_of[event["event_id"]] = event["chat_id"]
        if event["status"] in ("planned", "active"):
            ongoing.setdefault(event["chat_id"], []).append(event["event_id"])
    lengths = Counter(event_id for event_id, _ in model.log)
    small = {e for events in ongoing.values() if len(events) <= MOST_LISTED for e in events}
    event_id = max(sorted(small or chat_of), key=lambda each: lengths[each])
    return chat_of[event_id], event_id


def show_chat(on: Console, ending: Ending) -> None:
    """Print what goes on in the chat, and how one of its events reached its status."""
    show_title(on, f"What is planned or going on in {ending.chat_id}? (list {ending.chat_id})")
    table = plain_table("event", "kind", "status", "planned for", "props")
    for event in ending.listed:
        props = json.dumps(event["props"], ensure_ascii=False)
        table.add_row(
            event["event_id"],
            event["kind"],
            event["status"],
            _moment(event["planned_for"]),
            Text(props, no_wrap=True, overflow="ellipsis"),
        )
    show_table(on, table)
    show_title(on, f"How did {ending.event_id} come to this? (show {ending.event_id})")
    table = plain_table("occurred at", "message", "status after it", "what it did")
    for step in ending.shown["history"]:
        at, kind, status, mark = (step[n] for n in ("occurred_at", "kind", "status", "mark"))
        table.add_row(_moment(at), kind, status, mark)
    show_table(on, table)


def show_proof(on: Console, claims: list[Claim]) -> None:
    """Print each claim, and what contradicts it."""
    show_title(on, "The proof")
    table = plain_table()
    for claim in claims:
        mark = Text("NOT SO", "bold red") if claim.differences else Text("true", "green")
        table.add_row(mark, claim.text)
        for difference in claim.differences[:MOST_DIFFERENCES]:
            table.add_row("", Text(difference, "red"))
        if (more := len(claim.differences) - MOST_DIFFERENCES) > 0:
            table.add_row("", Text(f"... and {more:,} more differences", "red"))
    show_table(on, table)


def show_end(on: Console, claims: list[Claim], seconds: float) -> int:
    """Print whether all is as claimed; return the exit code."""
    on.print()
    if any(claim.differences for claim in claims):
        on.print(f"NOT as claimed (see above). {seconds:.0f} seconds.", style="bold red")
        return 1
    on.print(
        f"All as claimed, in {seconds:.0f} seconds. Its exchanges, queues, files and processes are "
        "gone again.",
        style="bold green",
    )
    return 0


def show_title(on: Console, title: str) -> None:
    """Print the title of what follows."""
    on.print()
    on.print(title, style="bold")


def plain_table(*columns: str) -> Table:
    """Return a table without lines."""
    table = Table(
        *columns, box=None, show_header=bool(columns), pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.header_style = "dim"
    return table


def _moment(text: str | None) -> str:
    return text[:16].replace("T", " ") if text else ""


def show_table(on: Console, table: Table) -> None:
    """Print a table without the spaces that rich puts after each line."""
    with on.capture() as captured:
        on.print(table)
    on.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _duplicates(ending: Ending) -> str:
    if (again := ending.committed_unacked) is None:
        return f"acked, nothing else; killed workers did not report on {ending.unreported:,} more"
    return (
        f"acked, nothing else: {ending.published_again:,} published twice, {again:,} redelivered "
        "after their commit"
    )


def _reasons(ending: Ending) -> list[tuple[str, str, int]]:
    """Return each reason with the detail of one dead letter, and how many there are of it."""
    numbers = Counter(letter.reason for letter in ending.dead_letters)
    details = {letter.reason: letter.detail for letter in ending.dead_letters}
    return [
        (reason, details[reason].replace("\n", " "), number)
        for reason, number in numbers.most_common()
    ]


def _statuses(model: ReadModel) -> str:
    numbers = Counter(row[COLUMNS.index("status")] for row in model.rows)
    return ", ".join(f"{number:,} {status}" for status, number in numbers.most_common())


def _seconds(measured: Measured) -> str:
    return (
        f"of {len(measured.kills) + 1} workers, their starts included; publishing took "
        f"{measured.publish_seconds:.1f}"
    )
