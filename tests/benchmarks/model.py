"""What a machine with more cores would do, from what each process costs on this one.

One worker is one process that does one thing at a time, so it has a highest rate of its own, and
several workers have the sum of theirs until the cores run out. That is all that the model knows.
"""

import math
from dataclasses import dataclass

MICROSECONDS = 1_000_000
ASSUMPTIONS = (
    ("a message costs each process as much as here", "contention grows with cores, caches do, too"),
    ("workers share the load evenly", "a hot chat stays with one worker; partitions differ"),
    ("as large a share of the cores is usable", "RabbitMQ and PostgreSQL need no core to wait for"),
    (
        "disk and network keep up",
        "see the bytes; a commit waits for its flush, but others need not",
    ),
    (
        "one machine",
        "on several, add TLS and the network, and count the cores of each engine alone",
    ),
)
"""What the model assumes, and what speaks against it or must be looked at."""


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU time per message, in microseconds."""

    workers: float
    broker: float
    sessions: float
    background: float

    @property
    def database(self) -> float:
        """PostgreSQL's processes."""
        return self.sessions + self.background

    @property
    def total(self) -> float:
        """All of them."""
        return self.workers + self.broker + self.database


@dataclass(frozen=True, slots=True)
class Model:
    """The figures of one machine, from which those of others follow."""

    costs: Costs
    alone: float
    """Messages a second of one worker that has the machine for itself."""
    usable: float
    """The share of the cores that workers and engines use together when there is enough to do."""

    def by_cores(self, cores: int) -> float:
        """Return the messages per second for which so many cores suffice."""
        return cores * self.usable * MICROSECONDS / self.costs.total

    def rate(self, workers: int, cores: int) -> float:
        """Return the messages per second of so many workers on a machine with so many cores."""
        return min(workers * self.alone, self.by_cores(cores))

    def workers_for(self, cores: int) -> int:
        """Return how many workers use so many cores up."""
        return math.ceil(self.by_cores(cores) / self.alone)
