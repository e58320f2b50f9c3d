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
    table = _table()
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
    _title(on, "What was counted")
    _print(on, table)


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
    _title(on, f"What is planned or going on in {ending.chat_id}? (list {ending.chat_id})")
    table = _table("event", "kind", "status", "planned for", "props")
    for event in ending.listed:
        props = json.dumps(event["props"], ensure_ascii=False)
        table.add_row(
            event["event_id"],
            event["kind"],
            event["status"],
            _moment(event["planned_for"]),
            Text(props, no_wrap=True, overflow="ellipsis"),
        )
    _print(on, table)
    _title(on, f"How did {ending.event_id} come to this? (show {ending.event_id})")
    table = _table("occurred at", "message", "status after it", "what it did")
    for step in ending.shown["history"]:
        at, kind, status, mark = (step[n] for n in ("occurred_at", "kind", "status", "mark"))
        table.add_row(_moment(at), kind, status, mark)
    _print(on, table)


def show_proof(on: Console, claims: list[Claim]) -> None:
    """Print each claim, and what contradicts it."""
    _title(on, "The proof")
    table = _table()
    for claim in claims:
        mark = Text("NOT SO", "bold red") if claim.differences else Text("true", "green")
        table.add_row(mark, claim.text)
        for difference in claim.differences[:MOST_DIFFERENCES]:
            table.add_row("", Text(difference, "red"))
        if (more := len(claim.differences) - MOST_DIFFERENCES) > 0:
            table.add_row("", Text(f"... and {more:,} more differences", "red"))
    _print(on, table)


def _title(on: Console, title: str) -> None:
    on.print()
    on.print(title, style="bold")


def _table(*columns: str) -> Table:
    table = Table(
        *columns, box=None, show_header=bool(columns), pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.header_style = "dim"
    return table


def _moment(text: str | None) -> str:
    return text[:16].replace("T", " ") if text else ""


def _print(on: Console, table: Table) -> None:
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
