"""The options that select dead letters, and what every command prints about one."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from worker.broker.dead_letter_queue import Selection
from worker.broker.dead_letters import DeadLetter
from worker.plurals import counted

_AGE = re.compile(r"(\d{1,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _age(text: str) -> timedelta:
    if not (found := _AGE.fullmatch(text)):
        raise typer.BadParameter(
            f"must be a number followed by s, m, h or d, such as 2h; not {text!r}."
        )
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


ById = Annotated[str | None, typer.Option("--id", help="Only those with this message id.")]
ByReason = Annotated[
    str | None, typer.Option("--reason", help="Only those with this reason, as listed.")
]
ByKind = Annotated[str | None, typer.Option("--kind", help="Only those of this kind.")]
ByAge = Annotated[
    timedelta | None,
    typer.Option(
        "--older-than",
        parser=_age,
        metavar="AGE",
        help="Only those rejected longer ago: 30m, 2h, 3d.",
    ),
]


def selection(
    message_id: str | None, reason: str | None, kind: str | None, age: timedelta | None
) -> Selection:
    """Return the selection that the options describe; an age counts from now."""
    before = None if age is None else datetime.now(UTC) - age
    return Selection(message_id, reason, kind, before)


def none_matches(count: int) -> str:
    """Return the sentence for a selection that matches none of so many dead letters."""
    if count == 0:
        return "There are no dead letters."
    return f"No dead letter matches; the queue has {counted(count, 'dead letter')}."


def summary(letter: DeadLetter) -> dict[str, Any]:
    """Return the fields that every list of dead letters has."""
    return {
        "number": letter.number,
        "reason": letter.reason,
        "kind": letter.kind,
        "id": letter.id or letter.message_id,
        "rejected_at": written(letter.rejected_at),
        "requeued": letter.requeue_count,
        "bytes": len(letter.body),
        "detail": letter.detail,
    }


def written(moment: datetime | None) -> str | None:
    """Return a time in the format of all other output."""
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
