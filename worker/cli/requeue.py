"""`dead-letters requeue` and `discard`: what an operator does about the selected dead letters."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from worker.broker.dead_letter_queue import (
    MAX_REQUEUES,
    DeadLetterQueue,
    Selection,
    dead_letter_queue,
)
from worker.broker.dead_letters import DeadLetter
from worker.broker_settings import address_of, topology_of
from worker.cli.app import AsJson, Yes
from worker.cli.dry_run import dry_run
from worker.cli.output import confirm, print_json, say
from worker.cli.selecting import ByAge, ById, ByKind, ByReason, selection, summary
from worker.settings import Settings, load_settings

Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Most of them.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="Select every dead letter.")]
OFTEN = f"was requeued {MAX_REQUEUES} times already"


def requeue(  # noqa: PLR0913 - one parameter for each option of the command
    *,
    message_id: ById = None,
    reason: ByReason = None,
    kind: ByKind = None,
    older_than: ByAge = None,
    limit: Limit = None,
    select_all: All = False,
    force: Annotated[
        bool, typer.Option("--force", help=f"Also what {OFTEN}, and was rejected again.")
    ] = False,
    is_dry: Annotated[
        bool, typer.Option("--dry-run", help="Show what would become of each; change nothing.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send selected dead letters back to this worker's queue, after their cause has been mended.

    No other queue gets them. What was requeued before a command ended early is, when it comes
    twice, a duplicate for the worker: run the command again.
    """
    wanted = _selection(selection(message_id, reason, kind, older_than), select_all)
    order = Order(wanted, limit, as_json, _is_often if not force else _is_never)
    if is_dry:
        asyncio.run(dry_run(load_settings(), wanted, limit, order.is_skipped, as_json=as_json))
    else:
        _give("requeued", order, lambda queue, letter: queue.requeue(letter), yes=yes)


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
    """Remove selected dead letters for good."""
    wanted = _selection(selection(message_id, reason, kind, older_than), select_all)

    async def remove(queue: DeadLetterQueue, letter: DeadLetter) -> list[str]:
        await queue.discard(letter)
        return []

    _give("discarded", Order(wanted, limit, as_json, _is_never), remove, yes=yes)


@dataclass(frozen=True)
class Order:
    """Which letters, and how many of them at most."""

    selection: Selection
    limit: int | None
    as_json: bool
    is_skipped: Callable[[DeadLetter], bool]


Deed = Callable[[DeadLetterQueue, DeadLetter], Awaitable[list[str]]]
"""Does it to one letter; gives the names of what it had to leave out."""


@dataclass
class _Account:
    """What has been done so far."""

    participle: str
    as_json: bool
    done: int = 0
    skipped: int = 0
    looked_for_in: int = 0
    letters: list[dict[str, Any]] = field(default_factory=list)

    def note(self, letter: DeadLetter, outcome: str, left_out: list[str]) -> None:
        if self.as_json:
            self.letters.append({**summary(letter), "outcome": outcome, "left_out": left_out})
            return
        line = f"{outcome}  {letter.name}  ({letter.reason}, {letter.kind or 'no kind'})"
        if outcome == "skipped":
            line += f": it {OFTEN}"
        if left_out:
            line += f", without {', '.join(left_out)}, which cannot be sent"
        say(line)

    def close(self) -> None:
        if self.as_json:
            counts = {self.participle: self.done, "skipped": self.skipped}
            print_json({**counts, "of": self.looked_for_in, "letters": self.letters})
            return
        often = f"; {self.skipped:,} skipped, which --force requeues" if self.skipped else ""
        say(f"{self.done:,} of {self.looked_for_in:,} dead letters {self.participle}{often}.")


def _give(participle: str, order: Order, deed: Deed, *, yes: bool) -> None:
    settings = load_settings()
    limit = order.limit
    if not yes:
        limit, skipped, count = asyncio.run(_count(settings, order))
        if limit:
            confirm(f"{limit:,} of {count:,} dead letters will be {participle}. Go on?")
        elif not skipped:
            # Nobody is asked about nothing; what is skipped is still told, one by one.
            _Account(participle, order.as_json, looked_for_in=count).close()
            return
    asyncio.run(_carry_out(settings, order, limit, deed, _Account(participle, order.as_json)))


async def _carry_out(
    settings: Settings, order: Order, limit: int | None, deed: Deed, account: _Account
) -> None:
    """Do it to one letter after the other; however that ends, say how far it came."""
    async with dead_letter_queue(address_of(settings), topology_of(settings)) as queue:
        account.looked_for_in = queue.count
        try:
            async for letter in queue.letters(order.selection):
                if order.is_skipped(letter):
                    account.skipped += 1
                    account.note(letter, "skipped", [])
                    continue
                if account.done == limit:
                    break
                left_out = await deed(queue, letter)
                account.done += 1
                account.note(letter, account.participle, left_out)
        finally:
            account.close()


async def _count(settings: Settings, order: Order) -> tuple[int, int, int]:
    """Give how many letters it is about, how many are skipped, and how many there are."""
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


def _selection(wanted: Selection, select_all: bool) -> Selection:  # noqa: FBT001 - as it was given
    if (wanted == Selection()) != select_all:
        raise typer.BadParameter(
            "select with --id, --reason, --kind or --older-than; or every one with --all alone."
        )
    return wanted


def _is_often(letter: DeadLetter) -> bool:
    return letter.requeue_count >= MAX_REQUEUES


def _is_never(_: DeadLetter) -> bool:
    return False
