import logging
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.builders import Message, completed, message, planned, started
from tests.oracle import expected_rows
from tests.places import Place
from tests.unit.projecting import LOG, arrivals, project, projecting, rows, verdicts
from worker import Message as Message_
from worker import Payload, Transaction
from worker.deliveries import BatchReport
from worker.errors import StoreUnavailable
from worker.registry import Registry
from worker.store.sqlite.opening import BUSY_MILLISECONDS


class TestOutcomes:
    async def test_stand_in_the_order_of_the_batch(self, place: Place) -> None:
        """There is one outcome for each delivery, and it refers to that delivery."""
        first, late = planned("e-1"), started("e-1", sequence=0)
        batch = arrivals([b"{", first, started("e-2"), late, first, b"", completed("e-1")])

        async with projecting(place) as projector:
            outcomes = await projector.project(batch)

        assert [outcome.delivery for outcome in outcomes] == [each.delivery for each in batch]
        assert verdicts(outcomes) == [
            "not_json", "applied", "orphan", "late", "duplicate", "not_json", "applied",
        ]  # fmt: skip

    async def test_name_the_message(self, place: Place) -> None:
        """An outcome holds what a log line needs, unless the delivery held no message."""
        bad, good = await project(place, [b"{", started("e-1", id="m-7")])

        assert (good.kind, good.event_id, good.message_id) == ("event_started", "e-1", "m-7")
        assert (bad.kind, bad.event_id, bad.message_id) == (None, None, None)

    async def test_of_an_empty_batch_are_none(self, place: Place) -> None:
        """An empty batch has no outcomes."""
        assert await project(place, []) == []

    async def test_are_orphan_only_while_there_is_no_row(self, place: Place) -> None:
        """An event that is planned after it was started gets its complete row."""
        history = [started("e", sequence=2), planned("e", sequence=1), completed("e", sequence=3)]

        outcomes = await project(place, *([each] for each in history))

        assert verdicts(outcomes) == ["orphan", "late", "applied"]
        assert rows(place) == expected_rows(history)

    @pytest.mark.parametrize("again", [False, True])
    async def test_are_duplicates_after_the_file_was_closed(
        self, place: Place, *, again: bool
    ) -> None:
        """The log recognizes a message forever, and nothing is written again."""
        history = [planned("e"), started("e"), started("orphan")]
        await project(place, history)
        before = rows(place, "SELECT * FROM messages ORDER BY event_id, id")

        outcomes = await project(place, [*history, history[0]], history[1:], again=again)

        assert verdicts(outcomes) == ["duplicate"] * 6
        assert rows(place, "SELECT * FROM messages ORDER BY event_id, id") == before

    async def test_make_the_report_of_a_batch(self, place: Place) -> None:
        """The report counts verdicts and keeps the rejections."""
        outcomes = await project(place, [planned("e"), b"{", planned("f")])

        report = BatchReport.of(outcomes, 0.5)

        assert dict(report.verdicts) == {"applied": 2, "rejected": 1}
        assert report.rejections == (outcomes[1],)

    async def test_are_in_the_log_with_the_clock_that_was_given(self, place: Place) -> None:
        """The worker's own time is in the log, and nowhere else."""
        async with projecting(place, clock=lambda: "now") as projector:
            await projector.project(arrivals([planned("e")]))

        assert rows(place, "SELECT appended_at, is_late FROM log") == [("now", 0)]
        assert "now" not in str(rows(place))


class TestHops:
    @pytest.mark.parametrize(("is_late", "many"), [(False, 200), (True, 50)])
    async def test_do_not_grow_with_the_batch(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, is_late: bool, many: int
    ) -> None:
        """A large batch goes to SQLite's thread as often as a small one.

        Late messages are an exception: their streams are read and remembered in bounded pieces.
        Aiosqlite logs a line for each call that it hands to its thread.
        """
        hops = {}
        for events in (2, many):
            batch: list[Message] = []
            for event in range(events):
                life = [build(f"e-{event}", sequence=n + 2) for n, build in enumerate(LIFE)]
                batch += [*reversed(life)] if is_late else life
            async with projecting(tmp_path / f"{events}.db") as projector:
                before = [started(f"e-{event}", sequence=9) for event in range(events)]
                await projector.project(arrivals(before if is_late else []))
                with caplog.at_level(logging.DEBUG, "aiosqlite"):
                    caplog.clear()
                    await projector.project(arrivals(batch))
            hops[events] = sum(r.msg.startswith("executing") for r in caplog.records)

        # Streams and their last number, or the sizes and the bodies of those to be folded again and
        # the rows to remember; what is written, with the look for orphans; the commit.
        assert hops[many] == hops[2] == (5 if is_late else 4)


LIFE = (planned, started, completed)


class TestDuplicatesThatNobodyMarked:
    async def test_are_looked_for_from_then_on(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If a publisher repeats messages, only the first such batch runs twice."""
        hops = []
        batch = arrivals([planned("e"), started("e")])
        async with projecting(tmp_path / "p.db") as projector:
            await projector.project(batch)
            for _ in range(2):
                with caplog.at_level(logging.DEBUG, "aiosqlite"):
                    caplog.clear()
                    outcomes = await projector.project(batch)
                hops.append(sum(r.msg.startswith("executing") for r in caplog.records))

        assert verdicts(outcomes) == ["duplicate"] * 2
        assert hops[1] < hops[0]

    async def test_stand_beside_new_ones_and_conflicts(self, tmp_path: Path) -> None:
        """Whether or not duplicates were looked for first, each message gets its verdict."""
        first, last = planned("e", sequence=1), completed("e", sequence=9)
        await project(tmp_path / "p.db", [first, started("e", id="b", sequence=5)])
        batch = [first, completed("e", id="b"), started("e", sequence=2), last, last]

        found = [
            verdicts(await project(copied(tmp_path / "p.db", name), batch, again=again))
            for name, again in (("marked.db", True), ("unmarked.db", False))
        ]

        assert found == [["duplicate", "id_conflict", "late", "applied", "duplicate"]] * 2


def copied(database: Path, name: str) -> Path:
    return Path(shutil.copy(database, database.with_name(name)))


class TestStoreUnavailable:
    async def test_writes_nothing_while_another_locks_the_file(self, tmp_path: Path) -> None:
        """The batch is unchanged, and succeeds once the lock is gone."""
        batch = arrivals([planned("e"), b"{", started("e")])

        async with projecting(tmp_path / "p.db") as projector:
            with closing(sqlite3.connect(tmp_path / "p.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreUnavailable, match="SQLITE_BUSY") as refused:
                    await projector.project(batch)
            before = rows(tmp_path / "p.db", LOG)
            outcomes = await projector.project(batch)

        assert refused.value.hint
        assert before == []
        assert verdicts(outcomes) == ["applied", "not_json", "applied"]

    def test_waits_in_sqlite_only_shortly(self) -> None:
        """A shutdown does not wait for another process's lock."""
        assert BUSY_MILLISECONDS <= 1_000

    async def test_writes_nothing_when_the_disk_is_full(self, tmp_path: Path) -> None:
        """A file that may not grow acts as a full disk; no message is blamed."""
        batch = arrivals([planned(f"e-{n}", payload={"note": "c" * 999}) for n in range(99)])

        async with projecting(tmp_path / "p.db") as projector:
            await projector.project(arrivals([planned("before")]))
            ((pages,),) = await projector._writer.fetch_all("PRAGMA page_count")
            await projector._writer.fetch_all(f"PRAGMA max_page_count = {pages + 9}")
            with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
                await projector.project(batch)
            before = rows(tmp_path / "p.db", LOG)
            await projector._writer.fetch_all("PRAGMA max_page_count = 1000000")
            outcomes = await projector.project(batch)

        assert [event_id for event_id, _ in before] == ["before"]
        assert verdicts(outcomes) == ["applied"] * 99

    async def test_is_no_fault_of_a_handler(self, tmp_path: Path) -> None:
        """A disk that fills up while a handler's statement runs dead-letters nothing."""
        registry = Registry()
        registry.projection(table="big", version=1, schema=("CREATE TABLE big (event_id, b)",))

        @registry.on("grown")
        async def grown(tx: Transaction, message: Message_[Payload]) -> None:
            await tx.execute("INSERT INTO big VALUES (?, zeroblob(99999))", (message.event_id,))

        batch = arrivals([message("grown", {"event_id": "e"}), b"{"], registry)

        async with projecting(tmp_path / "p.db", registry) as projector:
            ((pages,),) = await projector._writer.fetch_all("PRAGMA page_count")
            await projector._writer.fetch_all(f"PRAGMA max_page_count = {pages + 9}")
            with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
                await projector.project(batch)
            await projector._writer.fetch_all("PRAGMA max_page_count = 1000000")
            outcomes = await projector.project(batch)

        assert verdicts(outcomes) == ["applied", "not_json"]

    async def test_is_not_needed_for_what_is_no_message(self, tmp_path: Path) -> None:
        """A batch of invalid bodies alone is decided without the database."""
        async with projecting(tmp_path / "p.db") as projector:
            with closing(sqlite3.connect(tmp_path / "p.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                outcomes = await projector.project(arrivals([b"{", b""]))

        assert verdicts(outcomes) == ["not_json", "not_json"]

    async def test_leaves_a_reader_alone(self, tmp_path: Path) -> None:
        """A reader in a long query does not keep the worker from committing."""
        async with projecting(tmp_path / "p.db") as projector:
            await projector.project(arrivals([planned("e")]))
            with closing(sqlite3.connect(tmp_path / "p.db", isolation_level=None)) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT * FROM events").fetchall()
                outcomes = await projector.project(arrivals([completed("e")]))
                seen = reader.execute("SELECT status FROM events").fetchall()

        assert verdicts(outcomes) == ["applied"]
        assert seen == [("planned",)]


NOTHING = "CREATE TABLE none (event_id TEXT PRIMARY KEY)"


class TestFastPath:
    async def test_runs_each_handler_once(self, place: Place) -> None:
        """Disorder within a batch is sorted; only a message before the log's head needs a fold."""
        registry, runs = Registry(), []
        registry.projection(
            table="none", version=1, schema=("CREATE TABLE none (event_id TEXT PRIMARY KEY)",)
        )

        @registry.on("counted")
        async def counted(tx: Transaction, message: Message_[Payload]) -> None:
            runs.append(message.sequence)

        batches = [[3, 1, 2], [6, 5], [4]]
        history = [[message("counted", {"event_id": "e"}, sequence=n) for n in b] for b in batches]

        outcomes = await project(place, *history, registry=registry)

        assert runs == [1, 2, 3, 5, 6, 1, 2, 3, 4, 5, 6]
        assert len(outcomes) == 6


class TestManyStreams:
    async def test_end_like_each_alone(self, place: Place) -> None:
        """A shuffled batch of many streams gives what each stream gives by itself."""
        random_ = random.Random(7)
        history: list[Any] = [
            random_.choice(LIFE)(f"e-{random_.randrange(40)}", sequence=random_.randrange(9))
            for _ in range(600)
        ]

        await project(place, history[:599], history[599:])

        assert rows(place) == expected_rows(history)
