"""The values that travel through the worker: a delivery in, an outcome out.

They are immutable and have no behaviour of their own. Settling, counting and reporting all read the
same `Outcome`, so they cannot disagree. This module knows neither AMQP nor SQLite.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

DETAIL_MAX_CHARACTERS = 2_000
# One lost delivery is a restart or a network failure, which any message may meet; two make it a
# suspect.
SUSPECT_LOSSES = 2


@dataclass(frozen=True, slots=True)
class Properties:
    """What a dead letter keeps of its delivery besides the body."""

    headers: Mapping[str, object] = field(default_factory=dict)
    kept: Mapping[str, object] = field(default_factory=dict)
    """AMQP properties by name (`message_id`, `timestamp` ...)."""


# Each message has a `Delivery` and an `Outcome`. They are tuples because a tuple is created in a
# quarter of the time that a frozen dataclass takes.
class Delivery(NamedTuple):
    """One hand-over of a message by the broker."""

    body: bytes
    tag: int = 0
    """The delivery tag, which is valid only on the channel that delivered it."""
    routing_key: str = ""
    content_type: str | None = None
    redelivered: bool = False
    """The broker's hint that a consumer may have had it before; never a proof."""
    losses: int = 0
    """By the broker's count, how many consumers had it and ended without settling it."""
    read_properties: Callable[[], Properties] = Properties
    """Decodes the rest, which only dead letters and suspects need."""
    size: int = 0
    """Bytes of its header and body as they arrived."""
    partition: int = 0
    """The number of the queue that it came from; 0 if there is one queue."""
    appended_at: str | None = None
    """When another database's log took it, if it comes from there."""

    @property
    def is_suspect(self) -> bool:
        """Whether this message may have killed its consumers."""
        return self.losses >= SUSPECT_LOSSES


class Reason(StrEnum):
    """Why a message was rejected for good, as logs, headers and metrics spell it."""

    NOT_JSON = "not_json"
    BAD_ENVELOPE = "bad_envelope"
    UNKNOWN_KIND = "unknown_kind"
    BAD_PAYLOAD = "bad_payload"
    ID_CONFLICT = "id_conflict"
    TOO_LARGE = "too_large"
    HANDLER_FAILED = "handler_failed"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a message will never be applied: a reason for programs and a detail for people."""

    reason: Reason
    detail: str

    def __post_init__(self) -> None:
        """Truncate a long detail and escape lone surrogates: it goes into a header and a log."""
        start = self.detail[:DETAIL_MAX_CHARACTERS]
        sendable = start.encode(errors="backslashreplace").decode()
        object.__setattr__(self, "detail", sendable[:DETAIL_MAX_CHARACTERS])


class Verdict(StrEnum):
    """What the worker did with a message."""

    APPLIED = "applied"
    LATE = "late"
    """Applied at its position, before messages that had been applied already."""
    DUPLICATE = "duplicate"
    ORPHAN = "orphan"
    """In the log, but its event was never planned, so there is no row."""
    REJECTED = "rejected"


class Outcome(NamedTuple):
    """The decision about one delivery; already committed, except for a rejection."""

    delivery: Delivery
    verdict: Verdict
    rejected: Rejected | None = None
    """Set if and only if the verdict is `REJECTED`."""
    kind: str | None = None
    event_id: str | None = None
    message_id: str | None = None
    """`kind`, `event_id` and `message_id` are None if the delivery could not be decoded."""


class Folding(NamedTuple):
    """The progress of folding one stream again because of late messages."""

    event_id: str
    messages: int
    """The number of messages folded so far."""
    seconds: float
    """The time taken so far."""
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class BatchReport:
    """Summary of one committed batch, for the log and the metrics."""

    verdicts: Mapping[Verdict, int]
    rejections: tuple[Outcome, ...]
    redelivered: int
    """Deliveries that the broker marked as redelivered."""
    commit_seconds: float
    """Seconds from taking the batch to the end of COMMIT."""

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], commit_seconds: float) -> "BatchReport":
        """Return the summary of one batch's outcomes."""
        return cls(
            verdicts=Counter(outcome.verdict for outcome in outcomes),
            rejections=tuple(o for o in outcomes if o.verdict is Verdict.REJECTED),
            redelivered=sum(outcome.delivery.redelivered for outcome in outcomes),
            commit_seconds=commit_seconds,
        )
