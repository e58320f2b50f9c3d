"""The nouns that travel through the worker: a delivery in, an outcome out.

Immutable values without behaviour of their own. Settling, counting and reporting all read the same
`Outcome`, so they cannot disagree. Knows neither AMQP nor SQLite.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

DETAIL_MAX_CHARACTERS = 2_000
# Lost once is a restart or a cut, which happen to everyone; twice is a suspicion.
SUSPECT_LOSSES = 2


@dataclass(frozen=True, slots=True)
class Properties:
    """What a dead letter keeps of its delivery beside the body."""

    headers: Mapping[str, object] = field(default_factory=dict)
    kept: Mapping[str, object] = field(default_factory=dict)
    """AMQP properties by name (`message_id`, `timestamp` ...)."""


# Of this and of `Outcome` there is one for each message: a tuple is made in a quarter of the time
# that a frozen dataclass takes.
class Delivery(NamedTuple):
    """One hand-over of a message by the broker."""

    body: bytes
    tag: int = 0
    """The delivery tag: means something only on the channel that delivered it."""
    routing_key: str = ""
    content_type: str | None = None
    redelivered: bool = False
    """The broker's hint that somebody may have had it before; never a proof."""
    losses: int = 0
    """How many consumers have had it and ended without settling it, by the broker's count."""
    read_properties: Callable[[], Properties] = Properties
    """Decodes the rest, which only dead letters and suspects need."""
    size: int = 0
    """Bytes of its header and body, as they came."""

    @property
    def is_suspect(self) -> bool:
        """Whether this message may be what its consumers ended of."""
        return self.losses >= SUSPECT_LOSSES


class Reason(StrEnum):
    """Why a message was rejected for good, in the words of logs, headers and metrics."""

    NOT_JSON = "not_json"
    BAD_ENVELOPE = "bad_envelope"
    UNKNOWN_KIND = "unknown_kind"
    BAD_PAYLOAD = "bad_payload"
    ID_CONFLICT = "id_conflict"
    TOO_LARGE = "too_large"
    HANDLER_FAILED = "handler_failed"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message will never be applied: the machine's word and a person's sentence for why."""

    reason: Reason
    detail: str

    def __post_init__(self) -> None:
        """Cut a detail that quotes too much: it goes into a header and a log line."""
        object.__setattr__(self, "detail", self.detail[:DETAIL_MAX_CHARACTERS])


class Verdict(StrEnum):
    """What became of a message."""

    APPLIED = "applied"
    LATE = "late"
    """Applied, in its place before messages that had been applied already."""
    DUPLICATE = "duplicate"
    ORPHAN = "orphan"
    """In the log, but its event was never planned, so there is no row."""
    REJECTED = "rejected"


class Outcome(NamedTuple):
    """What was decided about one delivery; committed already, except for a rejection."""

    delivery: Delivery
    verdict: Verdict
    rejected: Rejected | None = None
    """Set exactly when the verdict is `REJECTED`."""
    kind: str | None = None
    event_id: str | None = None
    message_id: str | None = None
    """The last three are None where the delivery could not be decoded."""


class Folding(NamedTuple):
    """How far the fold of one stream is, to which late messages have come."""

    event_id: str
    messages: int
    """Folded so far."""
    seconds: float
    """Taken so far."""
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one committed batch did, for the log and the metrics."""

    verdicts: Mapping[Verdict, int]
    rejections: tuple[Outcome, ...]
    redelivered: int
    """Deliveries that the broker had made before."""
    commit_seconds: float
    """From the taking of the batch to the end of COMMIT."""

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], commit_seconds: float) -> "BatchReport":
        """Count the outcomes of one batch."""
        return cls(
            verdicts=Counter(outcome.verdict for outcome in outcomes),
            rejections=tuple(o for o in outcomes if o.verdict is Verdict.REJECTED),
            redelivered=sum(outcome.delivery.redelivered for outcome in outcomes),
            commit_seconds=commit_seconds,
        )
