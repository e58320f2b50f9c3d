"""What a worker is doing on each partition: shows people who consumes what.

It is counted when somebody asks, so that a message costs nothing for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from worker.deliveries import Delivery, Rejected
from worker.messages import AnyMessage

Undecided = tuple[Delivery, AnyMessage | Rejected | None]
"""A delivery, and what it was decoded to; None if it has not been decoded."""


@dataclass(frozen=True, slots=True)
class Activity:
    """One worker on one partition."""

    partition: int
    unsettled: int
    """How many deliveries it has and has not settled."""
    delivered_at: datetime | None
    """When it last took a delivery; None if it never did in this session."""
    oldest_at: datetime | None
    """The time of the oldest unsettled one: its publisher's, or else when it occurred.

    None if there is none, or if it says neither.
    """


def activities(
    partitions: Sequence[int],
    undecided: Iterable[Undecided],
    delivered_at: Mapping[int, datetime],
) -> list[Activity]:
    """Return the worker's activity on each of the partitions; `undecided` has the oldest first."""
    counts = dict.fromkeys(partitions, 0)
    oldest: dict[int, Undecided] = {}
    for each in undecided:
        partition = each[0].partition
        counts[partition] = counts.get(partition, 0) + 1
        oldest.setdefault(partition, each)
    return [
        Activity(
            partition,
            count,
            delivered_at.get(partition),
            _time_of(*oldest[partition]) if partition in oldest else None,
        )
        for partition, count in sorted(counts.items())
    ]


def _time_of(delivery: Delivery, content: AnyMessage | Rejected | None) -> datetime | None:
    published_at = delivery.read_properties().kept.get("timestamp")
    if isinstance(published_at, datetime):
        return published_at if published_at.tzinfo else published_at.replace(tzinfo=UTC)
    if content is None or isinstance(content, Rejected):
        return None
    return datetime.fromisoformat(content.occurred_at)
