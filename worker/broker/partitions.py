"""Partitions: the queues over which messages are spread, and which worker prefers which of them.

RabbitMQ routes a message by the hash of its routing key modulo the number of bound queues, and
makes one consumer of each queue the active one: since version 4.0, the one with the highest
priority. So no worker needs to know any other. Who consumes what is only about speed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

# A priority is a signed 32-bit number, and a rank stands for two of them (see quarantine.py).
MAX_RANK = 2**30 - 1
# With one hot chat, of 20,000 messages a batch had 45 on average with a window of 63 (2,000 / 32),
# 220 with 500, 370 with 1,000 and 690 with 2,000: from 500 on, a commit's fixed cost is spread well
# enough. With 32 full partitions, 500 kept 13,600 messages at once, in some 10 MB.
LEAST_WINDOW = 500
# Before RabbitMQ 4.0, the first worker on a queue keeps it. So a worker with an ordinal waits: this
# long for each later worker that would take the queue, and longer for the partitions of others.
GIVE_WAY_SECONDS = 1.0
OTHERS_SECONDS = 3.0
# Ranks from here up are for partitions that are a worker's own by its ordinal.
OWN = 2**29


def queue_of(queue: str, partition: int) -> str:
    """Return the name of a partition's queue.

    The digits make the order of the names the order of the numbers. RabbitMQ up to 3.13 routes by
    the order of the bindings, and 4.3 by the order of the names, so a restart moves no key. (From
    4.0 to 4.2 it may move keys; rabbitmq-server#15849.)
    """
    return f"{queue}.{partition:03}"


def own_partitions(ordinal: int, partitions: int) -> frozenset[int]:
    """Return the partitions that are a worker's own by its ordinal, until one with a higher comes.

    When there are N workers, the newest takes floor(K/N) of the K partitions, each from the worker
    that has the most. So the shares differ by one partition at most, and nobody needs to know N.
    """
    return _claims(ordinal, partitions)[-1]


def later_claims(ordinal: int, partitions: int) -> Counter[int]:
    """Return how many workers with higher ordinals would take each of the partitions, if they came.

    Partitions that nobody would take are missing.
    """
    later = _claims(partitions - 1, partitions)[ordinal + 1 :]
    return Counter(partition for claim in later for partition in claim)


@lru_cache(maxsize=2)
def _claims(ordinal: int, partitions: int) -> tuple[frozenset[int], ...]:
    """Return what each worker takes, from ordinal 0 to this one."""
    owned: list[list[int]] = [list(range(partitions))]
    claims = [frozenset(owned[0])]
    for newcomer in range(1, ordinal + 1):
        # Of those who have the most, the one with the lowest ordinal.
        taken = [max(owned, key=len).pop() for _ in range(partitions // (newcomer + 1))]
        owned.append(taken)
        claims.append(frozenset(taken))
    return tuple(claims)


@dataclass(frozen=True, slots=True)
class Ranking:
    """How much a worker wants each partition: the worker with the highest rank consumes."""

    worker: str
    """The worker's name, which no other worker of the queue has."""
    ordinal: int | None = None
    """Its number among the workers, counted from 0; None if they are not numbered."""

    def rank(self, partition: int, partitions: int) -> int:
        """Return the rank for one of this many partitions, from 0 to `MAX_RANK`.

        This is rendezvous hashing: a worker that comes takes only what it wins, and one that goes
        leaves each partition to the next in rank. With an ordinal, its own partitions come first.
        """
        if self.ordinal is not None and partition in own_partitions(self.ordinal, partitions):
            return min(OWN + self.ordinal, MAX_RANK)
        digest = blake2b(f"{self.worker}\0{partition}".encode(), digest_size=4).digest()
        return int.from_bytes(digest) % OWN


class Step(NamedTuple):
    """The attachment to one partition."""

    partition: int
    rank: int
    after_seconds: float = 0.0
    """How long after its session has begun the worker attaches."""


@dataclass(frozen=True, slots=True)
class Plan:
    """To which partitions a worker attaches, in which order, and how much it wants each."""

    ranking: Ranking
    has_priorities: bool
    """Whether the broker makes the consumer with the highest priority the active one."""

    def steps(self, partitions: int | None) -> Sequence[Step]:
        """Return the steps for this many partitions, in their order; one if there is one queue."""
        if partitions is None:
            return [Step(0, 0)]
        steps = [
            Step(partition, self.ranking.rank(partition, partitions), delay)
            for partition, delay in enumerate(self._delays(partitions))
        ]
        return sorted(steps, key=lambda step: (step.after_seconds, -step.rank))

    def _delays(self, partitions: int) -> list[float]:
        ordinal = self.ranking.ordinal
        if ordinal is None or self.has_priorities:
            return [0.0] * partitions
        own, later = own_partitions(ordinal, partitions), later_claims(ordinal, partitions)
        others = OTHERS_SECONDS + GIVE_WAY_SECONDS * max(
            later[partition] for partition in own | {-1}
        )
        return [
            GIVE_WAY_SECONDS * later[partition] if partition in own else others
            for partition in range(partitions)
        ]


def has_priorities(broker_version: str) -> bool:
    """Return whether this RabbitMQ makes the consumer with the highest priority the active one.

    One that does not say its version counts as an old one, for which workers with ordinals wait.
    """
    major = broker_version.partition(".")[0]
    return major.isdecimal() and int(major) >= 4


def window_of(prefetch: int, partitions: int | None) -> int:
    """Return the most deliveries of each partition that may be unacked.

    The broker has no limit for all queues of a channel together.
    """
    if partitions is None:
        return prefetch
    return min(prefetch, max(LEAST_WINDOW, -(-prefetch // partitions)))
