"""`dead-letters requeue` and `discard`: send selected dead letters back, or remove them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from worker.broker.dead_letter_queue import (
    MAX_REQUEUES,
    DeadLetterQueue,
    OnDone,
    Selection,
    dead_letter_queue,
)
from worker.broker.dead_letters import DeadLetter
from worker.broker_settings import address_of, topology_of
from worker.cli.app import AsJson, Yes
from worker.cli.dry_run import dry_run
from worker.cli.output import JsonList, confirm, say, say_all
from worker.cli.selecting import ByAge, ById, ByKind, ByReason, none_matches, selection, summary
from worker.plurals import counted
from worker.settings import Settings, load_settings

Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Maximum number of dead letters.", show_default=False),
]
All = Annotated[bool, typer.Option("--all", help="Select every dead letter.")]
OFTEN = f"was already requeued {MAX_REQUEUES} times"
# Printed together, because thousands of letters are done in the time of a few hundred prints.
LINES = 50


def requeue(  # noqa: PLR0913 - one parameter for each option of the command
    *,
    message_id: ById = None,
    reason: ByReason = None,
    kind: ByKind = None,
    older_than: ByAge = None,
    limit: Limit = None,
    select_all: All = False,
    force: Annotated[
        bool, typer.Option("--force", help=f"Include what {OFTEN} and rejected again.")
    ] = False,
    is_dry: Annotated[
        bool, typer.Option("--dry-run", help="Show what would happen to each; change nothing.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send selected dead letters back to this worker's queue, once their cause is corrected.

    No other queue gets them. If the command is interrupted, run it again: a message that arrives
    twice is a duplicate. If no dead letter matches, it says so and exits with 0.
    """
    wanted = _selection(selection(message_id, reason, kind, older_than), select_all)
    order = Order(wanted, limit, as_json, _is_often if not force else _is_never)
    if is_dry:
        asyncio.run(dry_run(load_settings(), wanted, limit, order.is_skipped, as_json=as_json))
    else:
        _carry_out("requeued", order, DeadLetterQueue.requeue, yes=yes)


def discard(  # noqa: PLR0913 - one parameter for each option of the command
    *,
    message_id: ById = None,
    reason: ByReason = None,
    kind: ByKind = None,
    older_than: ByAge = None,
    limit: Limit = None,
    select_all: All = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove selected dead letters for good.

    If no dead letter matches, it says so and exits with 0.
    """
    wanted = _selection(selection(message_id, reason, kind, older_than), select_all)
    order = Order(wanted, limit, as_json, _is_never)
    _carry_out("discarded", order, DeadLetterQueue.discard, yes=yes)


@dataclass(frozen=True)
class Order:
    """Which letters, and how many at most."""

    selection: Selection
    limit: int | None
    as_json: bool
    is_skipped: Callable[[DeadLetter], bool]

    def choose(
        self, letters: Sequence[DeadLetter], most: int
    ) -> tuple[list[DeadLetter], list[DeadLetter]]:
        """Return the first `most` letters to take, and the letters skipped before them.

        Together they are fewer than `letters` if the limit was reached.
        """
        chosen: list[DeadLetter] = []
        skipped: list[DeadLetter] = []
        for letter in letters:
            if self.is_skipped(letter):
                skipped.append(letter)
            elif len(chosen) < most:
                chosen.append(letter)
            else:
                break
        return chosen, skipped


Deed = Callable[[DeadLetterQueue, Sequence[DeadLetter], OnDone], Awaitable[None]]
"""Requeues or discards letters of one page, and reports each one when it is done."""


class _Account:
    """Reports what happened to each letter, and the totals at the end."""

    def __init__(self, participle: str, *, as_json: bool, of: int) -> None:
        self._participle = participle
        self._of = of
        self._done = self._skipped = 0
        self.is_complete = False
        """Whether every selected letter has been seen."""
        self._lines: list[str] = []
        self._json = JsonList('{"letters": [') if as_json else None

    def done(self, letter: DeadLetter, left_out: list[str]) -> None:
        self._done += 1
        self._note(letter, self._participle, left_out)

    def skipped(self, letter: DeadLetter) -> None:
        self._skipped += 1
        self._note(letter, "skipped", [])

    def close(self) -> None:
        self._print_lines()
        if self._json:
            counts = {self._participle: self._done, "skipped": self._skipped, "of": self._of}
            self._json.close("], " + json.dumps(counts)[1:])
            return
        if self.is_complete and not self._done + self._skipped:
            say(none_matches(self._of))
            return
        often = f"; {self._skipped:,} skipped (use --force to requeue)" if self._skipped else ""
        say(f"{self._done:,} of {counted(self._of, 'dead letter')} {self._participle}{often}.")

    def _note(self, letter: DeadLetter, outcome: str, left_out: list[str]) -> None:
        if self._json:
            self._json.add({**summary(letter), "outcome": outcome, "left_out": left_out})
            return
        line = f"{outcome}  {letter.name}  ({letter.reason}, {letter.kind or 'no kind'})"
        if outcome == "skipped":
            line += f": it {OFTEN}"
        if left_out:
            line += f", without {', '.join(left_out)}, which cannot be sent"
        self._lines.append(line)
        if len(self._lines) == LINES:
            self._print_lines()

    def _print_lines(self) -> None:
        if self._lines:
            say_all(self._lines)
            self._lines.clear()


def _carry_out(participle: str, order: Order, deed: Deed, *, yes: bool) -> None:
    settings = load_settings()
    limit = order.limit
    if not yes:
        limit, skipped, count = asyncio.run(_count(settings, order))
        if limit:
            letters = counted(count, "dead letter")
            confirm(f"{limit:,} of {letters} will be {participle}. Continue?")
        elif not skipped:
            # There is nothing to confirm. Skipped letters are still reported one by one, below.
            account = _Account(participle, as_json=order.as_json, of=count)
            account.is_complete = True
            account.close()
            return
    asyncio.run(_each_page(settings, order, limit, (participle, deed)))


async def _each_page(
    settings: Settings, order: Order, limit: int | None, what: tuple[str, Deed]
) -> None:
    """Requeue or discard the letters, page by page; however that ends, report how many."""
    participle, deed = what
    async with dead_letter_queue(address_of(settings), topology_of(settings)) as queue:
        account = _Account(participle, as_json=order.as_json, of=queue.count)
        left = queue.count if limit is None else limit
        try:
            async for page in queue.pages(order.selection):
                letters, skipped = order.choose(page, left)
                for letter in skipped:
                    account.skipped(letter)
                await deed(queue, letters, account.done)
                if len(letters) + len(skipped) < len(page):
                    break
                left -= len(letters)
            account.is_complete = True
        finally:
            account.close()


async def _count(settings: Settings, order: Order) -> tuple[int, int, int]:
    """Return how many letters are selected, how many are skipped, and how many there are in all."""
    done = skipped = 0
    async with dead_letter_queue(address_of(settings), topology_of(settings)) as queue:
        async for letter in queue.letters(order.selection):
            if order.is_skipped(letter):
                skipped += 1
            elif done == order.limit:
                break
            else:
                done += 1
        return done, skipped, queue.count


def _selection(wanted: Selection, select_all: bool) -> Selection:  # noqa: FBT001 - typer's value
    if (wanted == Selection()) != select_all:
        raise typer.BadParameter(
            "select with --id, --reason, --kind or --older-than; or select all with --all alone."
        )
    return wanted


def _is_often(letter: DeadLetter) -> bool:
    return letter.requeue_count >= MAX_REQUEUES


def _is_never(_: DeadLetter) -> bool:
    return False
