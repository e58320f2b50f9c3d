"""The result of a run, in the manner of Jepsen: counts, and checks that must hold.

It only compares; everything was collected before.
"""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of every attempted message, each counted once."""

    attempted: int
    confirmed: int
    applied: int
    dead_lettered: int
    queued: int
    lost: int
    unexpected: int
    applied_twice: int
    recovered: int

    @classmethod
    def of(
        cls,
        attempted: set[str],
        confirmed: set[str],
        applied: set[str],
        dead: set[str],
        queued: set[str],
        applied_twice: int,
    ) -> "Counts":
        """Compare what was published with where it is now."""
        seen = applied | dead
        return cls(
            attempted=len(attempted),
            confirmed=len(confirmed),
            applied=len(applied),
            dead_lettered=len(dead),
            queued=len(queued),
            lost=len(confirmed - seen - queued),
            unexpected=len(seen - attempted),
            applied_twice=applied_twice,
            recovered=len((seen & attempted) - confirmed),
        )


MEANINGS = {
    "attempted": "sent by the publisher",
    "confirmed": "confirmed by the broker",
    "applied": "in the log",
    "dead_lettered": "in the dead-letter queue",
    "queued": "still in the queue",
    "lost": "confirmed, but nowhere",
    "unexpected": "seen, but never attempted",
    "applied_twice": "appended more than once, as counted by a trigger",
    "recovered": "seen, but never confirmed",
}


@dataclass(frozen=True, slots=True)
class Check:
    """A condition that must hold, and what was found if it does not."""

    promise: str
    problem: str = ""

    @property
    def is_true(self) -> bool:
        """Whether it is."""
        return not self.problem


@dataclass(slots=True)
class Verdict:
    """The whole result of a run."""

    seed: int
    seconds: float
    counts: Counts
    checks: list[Check]
    injected: Counter[str]
    happened: dict[str, int] = field(default_factory=dict)
    """Numbers for information, without a check."""
    exit_codes: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def is_good(self) -> bool:
        """Whether all checks hold."""
        return all(check.is_true for check in self.checks)
