from collections import Counter

import pytest

from worker.broker.partitions import (
    MAX_RANK,
    Ranking,
    later_claims,
    own_partitions,
    queue_of,
)
from worker.settings import MAX_PARTITIONS

EVERY = range(32)


def winners(workers: list[Ranking], partitions: int = 32) -> list[str]:
    """Return the worker with the highest rank for each partition."""
    return [
        max(workers, key=lambda each: each.rank(partition, partitions)).worker
        for partition in range(partitions)
    ]


class TestARank:
    def test_moves_only_what_a_newcomer_wins(self) -> None:
        """All other partitions stay with their worker, when one comes and when it goes."""
        three = [Ranking(f"worker-{number}") for number in range(3)]
        before = winners(three)
        after = winners([*three, Ranking("worker-3")])

        moved = {(old, new) for old, new in zip(before, after, strict=True) if old != new}

        assert moved
        assert {new for _, new in moved} == {"worker-3"}

    def test_spreads_the_partitions(self) -> None:
        """No worker of four has more than twice its share, nor none."""
        shares = Counter(winners([Ranking(f"host-{number}") for number in range(4)]))

        assert len(shares) == 4
        assert max(shares.values()) <= 16

    def test_is_the_same_in_every_process(self) -> None:
        """It is no hash that Python changes from one process to the next."""
        ranks = [Ranking("worker-0").rank(partition, 3) for partition in range(3)]

        assert ranks == [228_828_915, 263_671_075, 127_944_530]

    def test_leaves_room_for_two_priorities(self) -> None:
        """A priority is a signed 32-bit number."""
        for ordinal in (None, 0, MAX_PARTITIONS - 1):
            for partition in range(MAX_PARTITIONS):
                rank = Ranking("w", ordinal).rank(partition, MAX_PARTITIONS)
                assert 0 <= rank <= MAX_RANK
        assert 2 * MAX_RANK + 1 < 2**31


class TestAnOrdinal:
    @pytest.mark.parametrize("partitions", [1, 7, 32])
    def test_spreads_the_partitions_evenly(self, partitions: int) -> None:
        """Whatever the number of workers is, their shares differ by one at most."""
        for number in range(1, partitions + 3):
            workers = [Ranking(f"w-{ordinal}", ordinal) for ordinal in range(number)]
            shares = Counter(winners(workers, partitions))
            counts = [shares[worker.worker] for worker in workers]
            assert max(counts) - min(counts) <= 1

    def test_leaves_a_missing_worker_s_partitions_to_the_others(self) -> None:
        """Those of the others stay where they are."""
        four = [Ranking(f"w-{ordinal}", ordinal) for ordinal in range(4)]
        before, after = winners(four), winners([four[0], four[1], four[3]])

        assert {old for old, new in zip(before, after, strict=True) if old != new} == {"w-2"}

    def test_knows_who_would_come_before_it(self) -> None:
        """The last in the row of those who claim a partition attaches to it first."""
        for partition in EVERY:
            claims = [o for o in EVERY if partition in own_partitions(o, 32)]
            assert [later_claims(o, 32)[partition] for o in claims] == list(
                reversed(range(len(claims)))
            )


class TestTheNames:
    def test_are_in_the_order_of_the_numbers(self) -> None:
        """RabbitMQ routes by the order of the names."""
        names = [queue_of("q", number) for number in range(MAX_PARTITIONS)]

        assert names == sorted(names)
        assert names[0] == "q.000"
