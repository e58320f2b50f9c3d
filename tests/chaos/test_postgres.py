from pathlib import Path

from tests.chaos.engine import fitting
from tests.chaos.nemesis import steps
from tests.chaos.postgres import POSTGRES
from tests.chaos.run import Plan, run
from tests.rabbitmq import RabbitMQNode

# A few that strike the whole fleet; `make chaos STORE=postgres` has all. With this seed, workers
# are killed while the database crashes, and join or leave during a resize.
FAULTS = ("kill", "scale", "database_crash", "resize")
SEED = 848
# Too short for a broker that is killed, and no fault here does that.
SECONDS = 3


class TestAShortRunOnPostgreSQL:
    async def test_with_several_workers_loses_and_repeats_nothing(
        self, running_node: RabbitMQNode, postgres_programs: Path, tmp_path: Path
    ) -> None:
        """Workers die, come and go, while their database crashes and partitions move."""
        said: list[str] = []
        plan = Plan(SEED, SECONDS, FAULTS, prefetch=1_000, batch_size=500)

        # Not the nodes of the other tests, because faults and the workers' users outlive the test.
        async with RabbitMQNode(POSTGRES.broker) as node:
            verdict = await run(plan, POSTGRES, node, tmp_path, said.append)

        assert [check for check in verdict.checks if not check.is_true] == [], said
        assert {"kill", "database_crash", "resize"} <= set(verdict.injected)
        assert {"join", "leave"} & set(verdict.injected)
        assert verdict.counts.applied > 500


class TestTheFaultsOfAShortRun:
    def test_are_chosen_by_the_seed(self) -> None:
        """In ninety seconds there are as many as come once, and others for another seed."""
        chosen = [fitting(POSTGRES, 90, seed) for seed in (1, 1, 2)]

        assert chosen[0] == chosen[1] != chosen[2]
        assert {len(faults) for faults in chosen} == {13}

    def test_are_all_in_a_long_run(self) -> None:
        """Ten minutes are enough for each of them, and the first step of each comes first."""
        chosen = fitting(POSTGRES, 600, SEED)
        first = steps(SEED, {name: POSTGRES.faults[name] for name in chosen})
        begun = [next(first).faults[0] for _ in chosen]

        usual = {name for name, fault in POSTGRES.faults.items() if fault.is_usual}
        needing = {name for name in usual if not POSTGRES.faults[name].needs()}
        assert sorted(begun) == sorted(usual - needing)
