"""What is to be said at the end, in the manner of Jepsen: counts, and what must be true of them.

Only compares; everything was collected before.
"""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of everything that was attempted, each thing counted once."""

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
    "attempted": "given to the publisher's connection",
    "confirmed": "taken over by the broker, by its word",
    "applied": "in the log",
    "dead_lettered": "in the dead-letter queue",
    "queued": "still in the queue",
    "lost": "confirmed, and nowhere",
    "unexpected": "seen, and never attempted",
    "applied_twice": "appended more than once, by the count of a trigger",
    "recovered": "never confirmed, and yet seen",
}


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must be true, and what was found if it is not."""

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
    """Numbers that nothing is demanded of."""
    exit_codes: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def is_good(self) -> bool:
        """Whether all is as it must be."""
        return all(check.is_true for check in self.checks)
