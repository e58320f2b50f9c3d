from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import Message
from tests.places import Place, writer_at
from tests.unit.projecting import arrivals, audited, project, projecting, projecting_with
from tests.unit.projecting import rows as rows_of
from tests.unit.tales import TALES, Word, expected, telling, word
from worker import Message as Message_
from worker import Transaction, late
from worker.deliveries import Folding
from worker.errors import StoreUnavailable
from worker.fold import Addition
from worker.projector import Projector
from worker.registry import Registry
from worker.store import log, streams
from worker.store.postgres.transaction import PostgresTransaction
from worker.store.sqlite.transaction import SqliteTransaction
from worker.store.streams import Snapshot


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every bound so small that a few messages exceed it."""
    piece = 3 * (log.MESSAGE_SIZE + 200)
    for module in (log, late):
        monkeypatch.setattr(module, "PIECE_SIZE", piece)
    monkeypatch.setattr(log, "PLACES_AT_ONCE", 4)
    monkeypatch.setattr(streams, "TAIL_BYTES", 700)
    monkeypatch.setattr(streams, "SNAPSHOTS_BYTES", 4_000)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Snapshot]:
    """Return the snapshots from which folds start."""
    found: list[Snapshot] = []
    usable = Addition.usable_snapshot

    def noted(self: Addition) -> Snapshot | None:
        if snapshot := usable(self):
            found.append(snapshot)
        return snapshot

    monkeypatch.setattr(Addition, "usable_snapshot", noted)
    return found


kinds = st.sampled_from(["told"] * 6 + ["marked"] * 3 + ["wiped"])
events = st.sampled_from(["e", "f", "g"])
words = st.builds(
    lambda n, event_id, kind, text: word(n, text, event_id=event_id, kind=kind),
    st.integers(0, 40), events, kinds, st.sampled_from(["a", "bc", "ü"]),
)  # fmt: skip


class TestSnapshots:
    """A fold that starts from remembered rows gives the rows of a full fold."""

    @pytest.mark.usefixtures("small")
    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    async def test_give_the_rows_of_a_whole_fold(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        """This holds for any order, duplicates, batches, tables, deleted rows and tail lengths."""
        path = tmp_path_factory.mktemp("late") / "p.db"
        history = data.draw(st.lists(words, min_size=1, max_size=40))
        # Nearly in order, as clocks that differ make it, and a few far out of order.
        shift = data.draw(st.sampled_from([1, 5, 40]))
        order = sorted(history, key=lambda m: m["sequence"] + data.draw(st.integers(0, shift)))
        arriving = [*order, *data.draw(st.lists(st.sampled_from(order), max_size=3))]
        size = data.draw(st.sampled_from([1, 2, 3, 7]))

        batches = [arriving[n : n + size] for n in range(0, len(arriving), size)]
        await project(path, *batches, registry=telling())

        assert rows_of(path, TALES) == expected(history)
        assert (await audited(path, telling())).differing == 0

    @pytest.mark.usefixtures("small")
    @pytest.mark.parametrize("seed", range(4))
    async def test_are_used(self, place: Place, used: list[Snapshot], seed: int) -> None:
        """Many folds start from one: with and without a tail, with and without rows."""
        rng = Random(seed)
        history = [
            word(n, event_id=rng.choice("efg"), kind=rng.choice(["told", "marked", "wiped"]))
            for n in range(120)
        ]
        arriving = sorted(history, key=lambda m: m["sequence"] + rng.choice([0, 3, 20]))

        await project(place, *([each] for each in arriving), registry=telling())

        assert rows_of(place, TALES) == expected(history)
        assert len(used) > 20
        assert {snapshot.tail is None for snapshot in used} == {True, False}
        assert {len(snapshot.rows) for snapshot in used} == {0, 1, 2}

    @pytest.mark.parametrize("batch_size", [1, 10])
    async def test_spare_what_comes_in_order_behind_a_wrong_clock(
        self, place: Place, batch_size: int
    ) -> None:
        """Each message is folded once, and the one from the future once per batch."""
        runs: list[int] = []
        arriving = [word(n) for n in range(200)]

        await project(
            place,
            [future := word(2**40)],
            *(arriving[n : n + batch_size] for n in range(0, 200, batch_size)),
            registry=telling(runs),
        )

        assert rows_of(place, TALES) == expected([*arriving, future])
        assert len(runs) == 1 + 200 + 200 / batch_size

    async def test_do_not_serve_what_comes_before_them(
        self, place: Place, used: list[Snapshot]
    ) -> None:
        """A message before a snapshot needs a full fold, and the next one does not."""
        history = [word(n) for n in (1, 9, 5, 3, 7)]

        await project(place, *([each] for each in history), registry=telling())

        assert rows_of(place, TALES) == expected(history)
        assert [snapshot.position[0] for snapshot in used] == [3]

    async def test_follow_what_comes_in_order_in_between(
        self, place: Place, used: list[Snapshot]
    ) -> None:
        """Messages after the head join the tail and are folded with the next late message."""
        order = [1, 9, 3, 10, 11, 4, 12, 5]
        history = [word(n) for n in order]

        await project(place, *([each] for each in history), registry=telling())

        assert rows_of(place, TALES) == expected(history)
        assert [len(snapshot.tail or ()) for snapshot in used] == [3, 4]

    async def test_are_not_kept_of_many_rows(self, place: Place, used: list[Snapshot]) -> None:
        """If an event has several rows in a table, their order is that of a full fold."""
        registry = Registry()
        schema = (
            "CREATE TABLE steps (event_id TEXT, text TEXT)",
            "CREATE INDEX steps_of ON steps (event_id)",
        )
        registry.projection(table="steps", version=1, schema=schema)

        @registry.on("told")
        async def told(tx: Transaction, message: Message_[Word]) -> None:
            values = (message.event_id, message.payload.text)
            await tx.execute("INSERT INTO steps VALUES (?, ?)", values)

        history = [word(n) for n in (1, 2, 9, 3, 4)]
        await project(place, *([each] for each in history), registry=registry)

        found = rows_of(place, "SELECT text FROM steps ORDER BY text")
        assert found == [("1,",), ("2,",), ("3,",), ("4,",), ("9,",)]
        assert used == []


class TestWhatIsRemembered:
    """A snapshot is a cache: it is dropped whenever it may differ from the file."""

    async def test_is_dropped_with_a_transaction_that_fails(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No later fold contains what a failed commit would have written."""
        history = [word(n) for n in (1, 9, 3)]
        async with projecting(place, telling()) as projector:
            for each in history:
                await projector.project(arrivals([each], telling()))
            with monkeypatch.context() as failing:
                for kind in (SqliteTransaction, PostgresTransaction):
                    failing.setattr(kind, "commit", refuse)
                with pytest.raises(StoreUnavailable):
                    await projector.project(arrivals([word(5), word(10)], telling()))

            await projector.project(arrivals([last := word(7)], telling()))

        assert rows_of(place, TALES) == expected([*history, last])

    async def test_is_dropped_when_somebody_else_has_written(self, place: Place) -> None:
        """The next fold contains what another writer added to the stream."""
        history = [word(n) for n in (1, 9, 3, 4, 5)]
        async with (
            projecting_with(writer_at(place), telling()) as one,
            projecting_with(writer_at(place), telling()) as other,
        ):
            for who, each in zip([one, one, one, other, one], history, strict=True):
                await insist(who, each)

        assert rows_of(place, TALES) == expected(history)

    async def test_survives_a_batch_of_duplicates(self, place: Place, used: list[Snapshot]) -> None:
        """Duplicates change nothing, so what is remembered stays right."""
        history = [word(n) for n in (1, 9, 3)]
        async with projecting(place, telling()) as projector:
            for each in history:
                await projector.project(arrivals([each], telling()))

            await projector.project(arrivals(history, telling(), again=True))
            await projector.project(arrivals([word(4)], telling()))

        assert len(used) == 1


async def refuse(*_: object) -> int:
    raise StoreUnavailable("The disk is full.", "make room.")


async def insist(projector: Projector, each: Message) -> None:
    batch = arrivals([each], telling())
    with suppress(StoreUnavailable):
        await projector.project(batch)
        return
    await projector.project(batch)


STEPS = "CREATE TABLE steps (event_id TEXT, text TEXT)"
EMPTY = "CREATE TABLE t (event_id TEXT PRIMARY KEY)"


class TestFailures:
    async def test_of_some_late_streams_stop_no_others(self, place: Place) -> None:
        """All failing streams are found in one pass, even if streams are read in pieces."""
        registry, runs = Registry(), list[str]()
        registry.projection(table="t", version=1, schema=(EMPTY,))

        @registry.on("told")
        async def told(tx: Transaction, message: Message_[Word]) -> None:
            runs.append(message.event_id)
            if message.payload.text == "bad":
                raise ValueError("bad")

        ids = [f"e-{n:04}" for n in range(1_000)]
        heads = [word(9, event_id=event_id) for event_id in ids]
        late_ones = [
            word(1, "bad" if n in {3, 500, 997} else "good", event_id=event_id)
            for n, event_id in enumerate(ids)
        ]
        async with projecting(place, registry) as projector:
            await projector.project(arrivals(heads, registry))
            runs.clear()
            outcomes = await projector.project(arrivals(late_ones, registry))

        rejected = [n for n, outcome in enumerate(outcomes) if outcome.rejected]
        assert rejected == [3, 500, 997]
        # Once to find them, once to write the others.
        assert sum(event_id == "e-0001" for event_id in runs) == 4


class TestProgress:
    @pytest.mark.usefixtures("small")
    async def test_is_reported_after_every_piece(self, place: Place) -> None:
        """An observer sees that a long fold makes progress, and for which event."""
        told: list[Folding] = []
        registry = telling()
        async with projecting_with(writer_at(place), registry) as projector:
            reporting = Projector(registry, projector._writer, folding=told.append)
            await reporting.project(arrivals([word(n) for n in range(1, 20)], registry))
            assert told == []
            await reporting.project(arrivals([word(0)], registry))

        done = told.pop()
        assert (done.event_id, done.messages, done.is_done) == ("e", 20, True)
        counts = [folding.messages for folding in told]
        assert counts == sorted(counts)
        assert len(counts) >= 5
        assert all(folding.seconds > 0 for folding in told)
