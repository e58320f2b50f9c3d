"""Is the worker alive, and is it ready? Pure functions of facts that the service writes down."""

from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic

# The loop turns every second; a handler that blocks it this long starves the heartbeats, too.
LOOP_SECONDS = 15
# A transaction takes milliseconds, and a lock ends it after a second: this one hangs in the disk.
COMMIT_SECONDS = 120


class State(StrEnum):
    """What the worker does now."""

    STARTING = "starting"
    STANDING_BY = "standing_by"
    REBUILDING = "rebuilding"
    CONNECTING = "connecting"
    CONSUMING = "consuming"
    HOLDING = "holding"
    BLOCKED = "blocked"
    DRAINING = "draining"


@dataclass(slots=True)
class Facts:
    """What is so at this moment; written by the service, read from any thread.

    Times are seconds of `time.monotonic`, unless something else is said.
    """

    state: State = State.STARTING
    problem: str | None = None
    """Why it is not well, as a sentence for people."""
    loop_turned_at: float = field(default_factory=monotonic)
    """When the event loop last turned."""
    transaction_began_at: float | None = None
    """When the transaction began that runs now."""
    oldest_unsettled_at: float | None = None
    """When the oldest delivery that is not settled was taken."""
    last_commit_at: float | None = None
    """Unix time of the last commit."""


@dataclass(frozen=True, slots=True)
class Health:
    """An answer, and its reason."""

    is_well: bool
    reason: str


def live(facts: Facts, now: float) -> Health:
    """Tell whether the process works; where it does not, only a restart helps.

    A broker that is away or a full disk is no reason: a restart would mend neither.
    """
    turned = now - facts.loop_turned_at
    if turned > LOOP_SECONDS:
        return Health(
            is_well=False, reason=f"The event loop has not turned for {turned:.0f} seconds."
        )
    began = facts.transaction_began_at
    if began is not None and now - began > COMMIT_SECONDS:
        return Health(
            is_well=False, reason=f"A transaction has been running for {now - began:.0f} seconds."
        )
    return Health(is_well=True, reason="The event loop turns.")


def ready(facts: Facts, now: float) -> Health:
    """Tell whether the worker consumes, and commits what it consumes."""
    alive = live(facts, now)
    if not alive.is_well:
        return alive
    if facts.state is State.CONSUMING and facts.problem is None:
        return Health(is_well=True, reason="It consumes, and commits or is idle.")
    return Health(is_well=False, reason=facts.problem or f"It is {facts.state}.")
