import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pytest

from tests.chaos.engine import fitting
from tests.chaos.ledger import Ledger, Publication
from tests.chaos.nemesis import Step, steps
from tests.chaos.run import Plan, run
from tests.chaos.sqlite import SQLITE
from tests.chaos.verdict import Counts
from tests.rabbitmq import RabbitMQNode

SEED = 20_261_123
# Each kind of fault comes once, however long that takes.
SECONDS = 60


class TestAShortRun:
    async def test_of_all_faults_at_once_loses_and_repeats_nothing(
        self, running_node: RabbitMQNode, tmp_path: Path
    ) -> None:
        """Whatever happens in two minutes, every check of the verdict holds."""
        said: list[str] = []
        faults = fitting(SQLITE, SECONDS, SEED)
        plan = Plan(SEED, SECONDS, faults, prefetch=1_000, batch_size=500)

        # Not the node of the other tests, because faults and the worker's user outlive the test.
        async with RabbitMQNode() as node:
            verdict = await run(plan, SQLITE, node, tmp_path, said.append)

        assert [check for check in verdict.checks if not check.is_true] == [], said
        assert set(verdict.injected) == set(faults)
        assert verdict.counts.applied > 5_000


FAULTS = SQLITE.faults


def first(count: int, seed: int, chosen: Iterable[str] = FAULTS) -> list[Step]:
    return list(islice(steps(seed, {name: FAULTS[name] for name in chosen}), count))


class TestTheNemesis:
    def test_chooses_the_same_for_the_same_seed(self) -> None:
        """A run that failed can be repeated."""
        assert first(200, SEED) == first(200, SEED)
        assert first(200, SEED) != first(200, SEED + 1)

    def test_begins_with_each_fault_once(self) -> None:
        """The broker's faults come last, when its queue is no longer new."""
        beginning = [step.faults[0] for step in first(len(FAULTS), SEED)]

        assert sorted(beginning) == sorted(FAULTS)
        assert {FAULTS[name].to for name in beginning[-4:]} == {"broker"}

    def test_chooses_among_those_that_are_asked_for(self) -> None:
        """With one kind alone, nothing else happens."""
        assert {step.faults for step in first(50, SEED, ["kill"])} == {("kill",)}


class TestTheCounts:
    @pytest.mark.parametrize(
        ("confirmed", "applied", "dead", "queued", "expected"),
        [
            ("ab", "ab", "", "", (0, 0, 0)),
            ("ab", "a", "b", "", (0, 0, 0)),
            ("ab", "a", "", "b", (0, 0, 0)),
            ("ab", "a", "", "", (1, 0, 0)),
            ("a", "ab", "", "", (0, 0, 1)),
            ("a", "a", "b", "", (0, 0, 1)),
            ("a", "ax", "y", "", (0, 2, 0)),
        ],
    )
    def test_say_what_is_lost_unexpected_and_recovered(
        self, confirmed: str, applied: str, dead: str, queued: str, expected: tuple[int, int, int]
    ) -> None:
        """Only confirmed messages can be lost, and only attempted ones are expected."""
        counts = Counts.of(
            attempted=set("ab"),
            confirmed=set(confirmed),
            applied=set(applied),
            dead=set(dead),
            queued=set(queued),
            applied_twice=0,
        )

        assert (counts.lost, counts.unexpected, counts.recovered) == expected


class TestTheLedger:
    def test_gives_each_sound_message_once(self, tmp_path: Path) -> None:
        """Copies and messages that must be dead-lettered are counted, but are not sound."""
        message = {"id": "m-1", "payload": {"event_id": "e-1"}}
        sound = Publication("e-1/m-1", json.dumps(message).encode())
        with Ledger(tmp_path / "ledger") as ledger:
            for each in (sound, Publication("bad", b"\xff", "not_json"), sound):
                ledger.attempt(each)
            ledger.confirm(sound)

        assert list(ledger.sound()) == [("e-1/m-1", message)]
        assert ledger.publishes == 3
        assert ledger.reasons == {"e-1/m-1": None, "bad": "not_json"}
        assert ledger.confirmed == {"e-1/m-1"}
