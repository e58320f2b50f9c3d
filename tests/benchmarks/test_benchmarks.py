"""Tests that the benchmark works, with numbers too small to measure speed."""

from collections import Counter
from pathlib import Path

import pytest

from tests.benchmarks import page
from tests.benchmarks.bench import Bench
from tests.benchmarks.broker import broker_on
from tests.benchmarks.contenders import COMPARED, FASTSTREAM, HANDWRITTEN
from tests.benchmarks.dead_lettering import dead_lettering
from tests.benchmarks.footprint import memory
from tests.benchmarks.late import late
from tests.benchmarks.latency import delays, receiving, summary
from tests.benchmarks.log_size import log_size
from tests.benchmarks.rebuilding import rebuild
from tests.benchmarks.tables import tables
from tests.benchmarks.throughput import throughput
from tests.benchmarks.traffic import Traffic
from tests.rabbitmq import RabbitMQNode


@pytest.fixture
async def bench(node: RabbitMQNode, tmp_path: Path) -> Bench:
    return Bench(node, await broker_on(node), tmp_path, lambda text: None)


class TestTraffic:
    """The mix of messages is like that of the real log."""

    def test_has_the_frequencies_of_the_real_log(self) -> None:
        """Its first 100,000 messages are of 10,891 events, and 21.9 % of them are reverts."""
        sent = Traffic().take(100_000)
        kinds = Counter(message.kind for message in sent)

        assert len({message.id for message in sent}) == 100_000
        assert 10_300 <= len({message.event_id for message in sent}) <= 11_500
        assert kinds["event_planned"] == pytest.approx(12_500, rel=0.1)
        assert kinds["event_started"] == pytest.approx(32_600, rel=0.05)
        assert kinds["event_status_reverted"] == pytest.approx(21_900, rel=0.05)

    def test_has_no_chat_with_most_of_the_messages(self) -> None:
        """One chat is one partition, so the partitions of a short log are about equally full."""
        chats = Counter(message.chat_id for message in Traffic().take(10_000))

        assert max(chats.values()) < 200

    def test_is_the_same_for_the_same_seed(self) -> None:
        """All contenders, in all processes, get the same messages."""
        assert Traffic().take(100) == Traffic().take(100) != Traffic(2).take(100)


class TestThroughput:
    """Every contender takes everything that waits, and the rows are the oracle's."""

    async def test_compares_all_and_checks_their_rows(self, bench: Bench) -> None:
        """`throughput` fails for rows that are not those of `tests/oracle.py`."""
        found = await throughput(bench, rounds=1, messages=3_000)

        assert set(found["runs"]) == set(COMPARED)
        assert [found["runs"][name][0]["messages"] for name in (FASTSTREAM, HANDWRITTEN)] == [
            150,
            150,
        ]
        assert all(run["cpu_seconds"] > 0 for (run,) in found["runs"].values())
        (targets, table) = tables({"throughput": found})
        assert [len(targets.rows), len(table.rows)] == [6, len(COMPARED)]


class TestTheOtherParts:
    """Each part returns its figures."""

    async def test_measure_files_and_memory(self, bench: Bench) -> None:
        """The rebuild makes the oracle's rows, and the worker can continue a filled log."""
        rebuilt = await rebuild(bench, rounds=1, messages=500)
        sizes = await log_size(bench, sizes=(0, 500), rounds=1, messages=200)
        peak = await memory(bench, messages=200)

        assert [len(runs) for runs in rebuilt["runs"].values()] == [1, 1]
        assert [len(each["runs"]) for each in sizes["sizes"]] == [2, 1]
        assert 20_000_000 < peak["peak_bytes"] < 200_000_000

    async def test_measure_dead_letters(self, bench: Bench) -> None:
        """The worker dead-letters what the client publishes, and their ratio has a target."""
        found = await dead_lettering(bench, rounds=1, messages=100)

        (targets,) = tables({"dead_lettering": found})
        assert [len(runs) for runs in found["runs"].values()] == [1, 1]
        assert [row[1] for row in targets.rows] == ["≥ 0.50"]

    async def test_measure_late_messages(self, bench: Bench) -> None:
        """Every order leads to the oracle's rows, and has its targets."""
        found = await late(bench, rounds=1, messages=500, long_stream=300)

        assert [run["messages"] for (run,) in found["runs"].values()] == [500, 500, 300, 300, 1]
        (targets, table) = tables({"late": found})
        assert [len(targets.rows), len(table.rows)] == [3, 5]

    async def test_measure_latency(self, bench: Bench, tmp_path: Path) -> None:
        """Every message that is published evenly is seen; the page shows the figures."""
        found = await delays(bench, rate=200, seconds=1)
        floor = await receiving(bench, rate=200, seconds=1)
        load = summary("1,000/s", 200, [found]) | {"floor": summary("1,000/s", 200, [floor])}
        part = {"rounds": 1, "loads": [load]}
        results = {"measured_at": "now", "machine": {}, "latency": part}
        document = tmp_path / page.PAGE
        document.parent.mkdir()
        document.write_text(f"Before.\n{page.BEGIN}\nold\n{page.END}\nAfter.\n")

        page.rewrite(results, tmp_path)

        assert len(found) == len(floor) == 200
        assert min(found) > min(floor) > 0
        before, generated, after = (
            document.read_text().replace(page.END, page.BEGIN).split(page.BEGIN)
        )
        assert (before, after) == ("Before.\n", "\nAfter.\n")
        assert "old" not in generated
        assert "(performance/latency.svg)" in generated
        assert (tmp_path / "docs/performance/latency.svg").read_text().startswith("<?xml")
