"""Whether the worker is live and ready, as pure functions of a few facts.

Live: a restart would not help. Ready: messages are being projected now. A standby is live but not
ready. So is a worker that holds its batch, because a new process would hold it as well.
"""

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

# The ticker runs every second; a batch of slow handlers may delay it by a few seconds.
LOOP_SECONDS = 15
# A transaction of 2,000 messages takes less than a second, or half a minute on a slow disk.
COMMIT_SECONDS = 120
# A step between two sessions takes about 20 seconds: at most 10 to open, 8 of backoff, and the time
# to close. It may also contain a transaction, which is allowed as much time as any other.
STEP_SECONDS = COMMIT_SECONDS


class State(StrEnum):
    """What the worker is doing, in the words of `/readyz` and the metrics."""

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
    """The broker does not accept dead letters."""
    DRAINING = "draining"


class Partitions(NamedTuple):
    """The partitions of the queue, and this worker's share of them."""

    number: int
    received: int
    """From how many of them this session has received messages."""


@dataclass(slots=True)
class Facts:
    """What the service knows about itself: only the service writes; the health thread reads.

    Each fact is one value that is replaced as a whole, so no lock is needed. Times are those of
    `time.monotonic()`, except for the last commit.
    """

    state: State = State.STARTING
    loop_turned_at: float = field(default_factory=time.monotonic)
    """The service's ticker sets it every second."""
    projecting_since: float | None = None
    """When the running transaction began."""
    progressed_at: float | None = None
    """When the running transaction last made progress: it began, or a long fold took a step."""
    step_began_at: float | None = field(default_factory=time.monotonic)
    """When the supervisor began its current step: to start, to open a session, to close one, or to
    drain. None while it consumes or rebuilds, which may take any time."""
    oldest_unsettled_at: float | None = None
    """When the oldest unsettled delivery arrived."""
    last_commit_at: float | None = None
    """In Unix time."""
    is_breaker_open: bool = False
    """Whether the batch is held because a kind fails for every message."""
    partitions: Partitions | None = None
    """None with a single queue, and until the first verification."""
    problem: str | None = None
    """What keeps the worker from projecting, in a sentence."""


@dataclass(frozen=True, slots=True)
class Health:
    """An answer, and the reason in a sentence."""

    is_well: bool
    reason: str


def live(facts: Facts, now: float) -> Health:
    """Return whether the process is live; if not, it should be restarted."""
    silent = now - facts.loop_turned_at
    if silent > LOOP_SECONDS:
        return Health(
            is_well=False,
            reason=f"The event loop has not turned for {silent:.0f} seconds: a handler blocks it.",
        )
    # Read once, because the service may end the transaction between two reads.
    since = facts.progressed_at
    if since is not None and now - since > COMMIT_SECONDS:
        return Health(
            is_well=False,
            reason=f"The transaction has made no progress for {now - since:.0f} seconds.",
        )
    # The end of a transaction begins a new step, so this is read after `progressed_at`.
    began_at = facts.step_began_at
    if since is None and began_at is not None and now - began_at > STEP_SECONDS:
        return Health(
            is_well=False,
            reason=f"{_state_sentence(facts.state)} One step of that has taken "
            f"{now - began_at:.0f} seconds: something that it waits for hangs.",
        )
    return Health(is_well=True, reason=_state_sentence(facts.state))


def ready(facts: Facts, now: float) -> Health:
    """Return whether messages are being projected; the reason names the state and the problem."""
    health = live(facts, now)
    if not health.is_well:
        return health
    state, problem = facts.state, facts.problem
    sentence = _state_sentence(state)
    if state is State.CONSUMING and (shares := facts.partitions) is not None:
        sentence += (
            f" It has received messages from {shares.received} of {shares.number} partitions."
        )
    return Health(
        is_well=state is State.CONSUMING and problem is None,
        reason=sentence if problem is None else f"{sentence} {problem}",
    )


def _state_sentence(state: State) -> str:
    return f"The worker is {state.replace('_', ' ')}."
