"""Tests that the figures of workers on PostgreSQL are taken, with numbers too small for speed."""

from pathlib import Path

import pytest

from tests.benchmarks.bench import Bench
from tests.benchmarks.broker import broker_on
from tests.benchmarks.contenders import COMPARED_ON_POSTGRES
from tests.benchmarks.model import Costs, Model
from tests.benchmarks.on_postgres import on_postgres
from tests.benchmarks.scaling import scaling
from tests.benchmarks.tables import tables
from tests.benchmarks.takeover import JOINED, KILLED, STOPPED, takeover
from tests.rabbitmq import RabbitMQNode


@pytest.fixture
async def bench(node: RabbitMQNode, postgres_programs: Path, tmp_path: Path) -> Bench:
    return Bench(node, await broker_on(node), tmp_path, lambda text: None)


class TestOnPostgres:
    """Every contender takes everything that waits, and the rows are the oracle's."""

    async def test_compares_all_and_checks_their_rows(self, bench: Bench) -> None:
        """It fails for rows that are not those of `tests/oracle.py`, on either engine."""
        found = await on_postgres(bench, rounds=2, messages=500)

        assert set(found["runs"]) == set(COMPARED_ON_POSTGRES)
        assert all(run["cpu_seconds"] > 0 for runs in found["runs"].values() for run in runs)
        (targets, table) = tables({"on_postgres": found})
        assert [len(targets.rows), len(table.rows)] == [3, len(COMPARED_ON_POSTGRES)]


class TestSharing:
    """Several workers take everything together, and the CPU time of each process is known."""

    async def test_counts_what_every_process_costs(self, bench: Bench) -> None:
        """Workers, broker, sessions: none is free, and the model follows from them."""
        found = await scaling(bench, rounds=1, messages=2_000, together=(1, 2))

        for name, (run,) in found["runs"].items():
            assert len(run["partitions"]) == int(name)
            assert sum(run["partitions"]) == found["partitions"]
            costs = [run[f"{each}cpu_seconds"] for each in ("", "broker_", "sessions_")]
            assert min(costs) > 0
            assert run["peak_bytes"] > 20_000_000
        titles = [table.title.partition(",")[0] for table in tables({"scaling": found})]
        assert len(titles) == 5


class TestTakeover:
    """Partitions move to another worker, and the wait of their messages is measured."""

    async def test_measures_each_event(self, bench: Bench) -> None:
        """A worker is killed, another stopped, and both are replaced; nothing is lost."""
        found = await takeover(bench, rounds=1, apart=2.0)

        waits = found["longest_seconds"]
        assert {what: len(each) for what, each in waits.items()} == {
            KILLED: 1,
            STOPPED: 1,
            JOINED: 2,
        }
        assert max(waits[KILLED]) > found["usual_seconds"]


class TestModel:
    """The rate is the sum of the workers' until the cores run out."""

    COSTS = Costs(workers=50, broker=20, sessions=25, background=5)

    def test_adds_workers_while_there_are_cores(self) -> None:
        """Two workers of 10,000/s each need 2 of 8 cores."""
        model = Model(self.COSTS, alone=10_000, usable=1.0)

        assert model.rate(workers=2, cores=8) == 20_000

    def test_ends_where_the_cores_are_used_up(self) -> None:
        """100 microseconds a message on four fifths of 4 cores are 32,000 messages a second."""
        model = Model(self.COSTS, alone=10_000, usable=0.8)

        assert model.rate(workers=10, cores=4) == pytest.approx(32_000)
        assert model.workers_for(cores=4) == 4
