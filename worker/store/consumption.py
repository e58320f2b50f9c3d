"""Who consumes which partition: a report of the workers to people, on which nothing depends."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Consumption:
    """What the last worker that received messages of a partition says about it."""

    partition: int
    worker: str
    """The worker's name."""
    received_seconds: float
    """How long ago it last received a message of the partition."""
    unsettled: int
    """How many messages of the partition it has, which are not settled."""
    oldest_seconds: float | None
    """The age of the oldest of them, by the publisher's clock; None if there is none."""
    reported_seconds: float = 0.0
    """How long ago the worker reported this."""
