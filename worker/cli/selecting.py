"""The options that select dead letters, and what every command tells of one."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from worker.broker.dead_letter_queue import Selection
from worker.broker.dead_letters import DeadLetter

_AGE = re.compile(r"(\d{1,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _age(text: str) -> timedelta:
    if not (found := _AGE.fullmatch(text)):
        raise typer.BadParameter(f"must be a number with s, m, h or d, such as 2h; not {text!r}.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


ById = Annotated[str | None, typer.Option("--id", help="Only those with this message id.")]
ByReason = Annotated[
    str | None, typer.Option("--reason", help="Only those with this reason, as the list shows it.")
]
ByKind = Annotated[str | None, typer.Option("--kind", help="Only those of this kind.")]
ByAge = Annotated[
    timedelta | None,
    typer.Option(
        "--older-than", parser=_age, metavar="AGE", help="Only those rejected before: 30m, 2h, 3d."
    ),
]


def selection(
    message_id: str | None, reason: str | None, kind: str | None, age: timedelta | None
) -> Selection:
    """Put the options together; an age counts from now."""
    before = None if age is None else datetime.now(UTC) - age
    return Selection(message_id, reason, kind, before)


def summary(letter: DeadLetter) -> dict[str, Any]:
    """Return what every list of dead letters tells."""
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
    """Return a time as it is written everywhere else."""
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
