"""Is the worker well, and does it do its work? Pure functions of a few facts.

Live: a restart would not help. Ready: messages are being projected now. A standby is live and not
ready; so is a worker that holds its batch, because a new process would hold it, too.
"""

import time
from dataclasses import dataclass, field
from enum import StrEnum

# The loop's ticker turns every second; a batch of slow handlers may delay it by a few.
LOOP_SECONDS = 15
# A transaction of 2,000 messages takes below a second, and half a minute when the disk is slow.
COMMIT_SECONDS = 120
# Between two sessions a step takes 20 seconds: at most 10 to open, 8 of backoff, and what closing
# takes. It may hold a transaction as well, which has the time of any other.
STEP_SECONDS = COMMIT_SECONDS


class State(StrEnum):
    """What the worker is about, in the words of `/readyz` and the metrics."""

    STARTING = "starting"
    STANDING_BY = "standing_by"
    """Another worker writes the file, or is active on the queue."""
    REBUILDING = "rebuilding"
    CONNECTING = "connecting"
    """There is no session with the broker."""
    CONSUMING = "consuming"
    HOLDING = "holding"
    """The database cannot commit, or the breaker is open; the batch is held, unacked."""
    BLOCKED = "blocked"
    """The broker takes no dead letters."""
    DRAINING = "draining"


@dataclass(slots=True)
class Facts:
    """What the service knows of itself: it alone writes, the health server's thread reads.

    Each is one value that is replaced as a whole, so no lock is needed. Times are those of
    `time.monotonic()` but for the last commit's.
    """

    state: State = State.STARTING
    loop_turned_at: float = field(default_factory=time.monotonic)
    """The service's ticker sets it every second."""
    projecting_since: float | None = None
    """When the transaction that runs now began."""
    progressed_at: float | None = None
    """When the transaction that runs now last got on: it began, or a long fold came a step further.
    """
    step_began_at: float | None = field(default_factory=time.monotonic)
    """When the supervisor began the step that it is on: to start, to open a session, to close one,
    to drain. None while it consumes or rebuilds, for as long as there is work."""
    oldest_unsettled_at: float | None = None
    """When the oldest delivery that is not settled arrived."""
    last_commit_at: float | None = None
    """In Unix time."""
    is_breaker_open: bool = False
    """Whether the batch is held because a kind fails for every message."""
    problem: str | None = None
    """What keeps the worker from its work, in a sentence."""


@dataclass(frozen=True, slots=True)
class Health:
    """An answer, and the sentence that says why."""

    is_well: bool
    reason: str


def live(facts: Facts, now: float) -> Health:
    """Return whether the process is worth keeping; if not, a restart is the cure."""
    silent = now - facts.loop_turned_at
    if silent > LOOP_SECONDS:
        return Health(
            is_well=False,
            reason=f"The event loop has not turned for {silent:.0f} seconds: a handler blocks it.",
        )
    # Read once: the service may end the transaction between two looks.
    since = facts.progressed_at
    if since is not None and now - since > COMMIT_SECONDS:
        return Health(
            is_well=False,
            reason=f"The transaction has made no progress for {now - since:.0f} seconds.",
        )
    # The end of a transaction is a step, too: so this is read after it.
    began_at = facts.step_began_at
    if since is None and began_at is not None and now - began_at > STEP_SECONDS:
        return Health(
            is_well=False,
            reason=f"{_state_sentence(facts.state)} It has been on one step of that for "
            f"{now - began_at:.0f} seconds: something that it waits for does not end.",
        )
    return Health(is_well=True, reason=_state_sentence(facts.state))


def ready(facts: Facts, now: float) -> Health:
    """Return whether messages are being projected; if not, the reason names state and problem."""
    health = live(facts, now)
    if not health.is_well:
        return health
    state, problem = facts.state, facts.problem
    sentence = _state_sentence(state)
    return Health(
        is_well=state is State.CONSUMING and problem is None,
        reason=sentence if problem is None else f"{sentence} {problem}",
    )


def _state_sentence(state: State) -> str:
    return f"The worker is {state.replace('_', ' ')}."
