"""Handlers that fail, and what becomes of their messages and of the others."""

import asyncio
import random
from asyncio import CancelledError
from collections import Counter as Counted
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.builders import Message as Wire
from tests.places import Place, beside
from tests.unit.notebook import (
    FAILING,
    FAILING_IN_A_FILE,
    FAILING_ON_A_SERVER,
    LOGGED,
    NOTES,
    Counter,
    Failures,
    Text,
    detail_of,
    flaky_notebook,
    notebook,
    said,
    written,
)
from tests.unit.projecting import arrivals, audited, project, projecting, rows, verdicts
from worker import Message, Transaction
from worker.errors import StoreUnavailable, StoreUnusable
from worker.registry import Registry
from worker.store.postgres.address import Address

# Far beyond what any batch here takes.
ENDLESS_RUNS = 5_000


class Unspeakable(Exception):
    """An error that cannot be put into words."""

    def __str__(self) -> str:
        raise SystemExit


async def costs_nothing(place: Place, failing: Wire, detail: str) -> None:
    """Require that a message is rejected between two others, which are applied."""
    batch = [said("written", "a", "1", id="a"), failing, said("written", "b", "2", id="b")]

    outcomes = await project(place, batch, registry=notebook())

    assert verdicts(outcomes) == ["applied", "handler_failed", "applied"]
    assert detail in detail_of(outcomes[1]).upper()
    assert rows(place, NOTES) == [("a", "1"), ("b", "2")]


class TestHandlerThatFails:
    @pytest.mark.parametrize(("failing", "detail"), FAILING.values(), ids=FAILING)
    @pytest.mark.parametrize(("batch_size", "again"), [(1, False), (3, False), (3, True)])
    async def test_costs_its_neighbours_nothing(
        self, place: Place, failing: Wire, detail: str, batch_size: int, *, again: bool
    ) -> None:
        """Its message is rejected with the error, and leaves no trace in the file."""
        batch = [said("written", "a", "1", id="a"), failing, said("written", "b", "2", id="b")]
        batches = [batch[n : n + batch_size] for n in range(0, 3, batch_size)]

        outcomes = await project(place, *batches, registry=notebook(), again=again)

        assert verdicts(outcomes) == ["applied", "handler_failed", "applied"]
        assert outcomes[1].rejected is not None
        assert f"of {failing['kind']!r} failed 3 times" in outcomes[1].rejected.detail
        assert detail in outcomes[1].rejected.detail.upper()
        assert rows(place, NOTES) == [("a", "1"), ("b", "2")]
        assert rows(place, LOGGED) == [("a",), ("b",)]

    @pytest.mark.parametrize(
        ("failing", "detail"), FAILING_IN_A_FILE.values(), ids=FAILING_IN_A_FILE
    )
    async def test_fails_for_what_only_sqlite_can_do(
        self, tmp_path: Path, failing: Wire, detail: str
    ) -> None:
        """It has ways of its own to do what a handler may not do."""
        await costs_nothing(tmp_path / "p.db", failing, detail)

    @pytest.mark.parametrize(
        ("failing", "detail"), FAILING_ON_A_SERVER.values(), ids=FAILING_ON_A_SERVER
    )
    async def test_fails_for_what_only_postgresql_can_do(
        self, schema: Address, failing: Wire, detail: str
    ) -> None:
        """The plan of a statement says what it does, however it is written."""
        await costs_nothing(schema, failing, detail)

    async def test_costs_its_own_stream_nothing(self, place: Place) -> None:
        """The stream continues as if the message had never been published."""
        failing = said("raised", "a", sequence=2)
        first, last = said("written", "a", "1", sequence=1), said("written", "a", "3", sequence=3)

        outcomes = await project(place, [first, failing, last], registry=notebook())

        assert verdicts(outcomes) == ["applied", "handler_failed", "applied"]
        assert rows(place, NOTES) == [("a", "13")]
        assert (await audited(place, notebook())).differing == 0

    @pytest.mark.parametrize("again", [False, True])
    async def test_fails_again_beside_what_is_known(self, place: Place, *, again: bool) -> None:
        """When the same batch is redelivered, it is decided in the same way."""
        batch = [said("written", "a", "1"), said("raised", "a"), said("written", "a", "3")]
        await project(place, batch, registry=notebook())

        outcomes = await project(place, batch, registry=notebook(), again=again)

        assert verdicts(outcomes) == ["duplicate", "handler_failed", "duplicate"]
        assert rows(place, NOTES) == [("a", "13")]

    async def test_leaves_no_head_behind(self, place: Place) -> None:
        """A rejected message makes no later message late."""
        failing, next_ = said("raised", "a", sequence=9), said("written", "a", "1", sequence=1)

        outcomes = await project(place, [failing], [next_], registry=notebook())

        assert verdicts(outcomes) == ["handler_failed", "applied"]

    @pytest.mark.parametrize("second", ["written", "raised"])
    async def test_takes_no_other_content_of_its_id_along(self, place: Place, second: str) -> None:
        """The other message is tried by itself, as it would be in the next batch."""
        batch = [said("raised", "a", "one", id="i"), said(second, "a", "two", id="i")]

        outcomes = await project(beside(place, "a"), batch, registry=notebook())
        one_by_one = await project(beside(place, "b"), *([e] for e in batch), registry=notebook())

        assert verdicts(outcomes) == verdicts(one_by_one)
        assert [o.rejected for o in outcomes] == [o.rejected for o in one_by_one]

    async def test_decides_the_rest_of_the_batch_as_ever(self, place: Place) -> None:
        """Duplicates, late messages and conflicts are found one by one, too."""
        first = said("written", "a", "2", id="m", sequence=2)
        batch = [
            said("raised", "x"), first, said("written", "a", "1", sequence=1), first,
            said("removed", "a", id="m"), said("removed", "b"),
        ]  # fmt: skip

        outcomes = await project(place, batch, registry=notebook())

        assert verdicts(outcomes) == [
            "handler_failed", "applied", "late", "duplicate", "id_conflict", "orphan",
        ]  # fmt: skip
        assert rows(place, NOTES) == [("a", "12")]


class TestAHandlerThatCatches:
    async def test_hides_no_failure_of_another(self, place: Place) -> None:
        """Statements deferred behind a failed one are still written."""
        registry = notebook()

        @registry.on("caught")
        async def caught(tx: Transaction, message: Message[Text]) -> None:
            with suppress(Exception):
                await tx.fetch_one("SELECT 1")

        good = [said("written", f"g{n}", "1", id=f"g{n}") for n in range(9)]
        batch = [*good, said("written", "x", "bad"), *(said("caught", f"c{n}") for n in range(9))]

        outcomes = await project(place, batch, registry=registry)

        assert verdicts(outcomes) == ["applied"] * 9 + ["handler_failed"] + ["orphan"] * 9
        assert len(rows(place, NOTES)) == 9


class TestATableThatEndsTheTransaction:
    async def test_stops_the_worker_before_anything_is_acked(self, tmp_path: Path) -> None:
        """No part of the batch commits, and no outcome claims that it did."""
        registry = Registry()
        registry.projection(
            table="notes",
            version=1,
            schema=("CREATE TABLE notes (event_id TEXT UNIQUE ON CONFLICT ROLLBACK, text TEXT)",),
        )

        @registry.on("noted")
        async def noted(tx: Transaction, message: Message[Text]) -> None:
            await tx.execute("INSERT INTO notes VALUES (?, ?)", (message.event_id, "x"))

        batch = [said("noted", each) for each in ("a", "b", "b", "c")]
        with pytest.raises(StoreUnusable, match="ended from within"):
            await project(tmp_path / "p.db", batch, registry=registry)

        assert rows(tmp_path / "p.db", NOTES) == []
        assert rows(tmp_path / "p.db", LOGGED) == []


class TestRetry:
    @pytest.mark.parametrize("failures", [1, 2, 3])
    async def test_applies_a_message_that_fails_for_a_while(
        self, place: Place, failures: int
    ) -> None:
        """It gets three attempts alone, then runs with its batch; failures leave no trace."""
        counted = Failures(failures)

        outcomes = await project(place, [said("flaky", "a", "1")], registry=flaky_notebook(counted))

        assert verdicts(outcomes) == ["applied"]
        assert counted.runs == failures + 2
        assert rows(place, NOTES) == [("a", "1")]

    async def test_ends(self, place: Place) -> None:
        """After the third attempt alone, the message is rejected."""
        counted = Failures(4)

        outcomes = await project(place, [said("flaky", "a", "1")], registry=flaky_notebook(counted))

        assert verdicts(outcomes) == ["handler_failed"]
        assert counted.runs == 4

    async def test_ends_if_handlers_fail_at_random(self, place: Place) -> None:
        """No batch is so large that none of its passes succeeds."""
        registry, random_ = notebook(), random.Random(1)

        @registry.on("flaky")
        async def flaky(tx: Transaction, message: Message[Text]) -> None:
            await written(tx, message)
            if counter.runs > ENDLESS_RUNS:
                pytest.exit("The batch is tried without end.")
            if random_.random() < 0.1:
                raise TimeoutError("now and then")

        counter = Counter(registry)
        streams = [f"e-{n % 30}" for n in range(200)]

        outcomes = await project(
            place, [said("flaky", each, "1") for each in streams], registry=registry
        )

        failed = {o.message_id for o in outcomes if o.rejected}
        applied = Counted(o.event_id for o in outcomes if o.message_id not in failed)
        assert len(failed) <= 2
        assert dict(rows(place, NOTES)) == {e: "1" * n for e, n in applied.items()}
        assert (await audited(place, flaky_notebook(Failures(0)))).differing == 0

    async def test_ends_if_a_handler_fails_beside_another_stream(self, place: Place) -> None:
        """The first of two that tolerate no neighbour is applied, in spite of the contract."""
        registry = notebook()

        @registry.on("alone")
        async def alone(tx: Transaction, message: Message[Text]) -> None:
            if counter.runs > ENDLESS_RUNS:
                pytest.exit("The batch is tried without end.")
            if await tx.fetch_one("SELECT 1 FROM notes"):
                raise LookupError("a crowd")
            await written(tx, message)

        counter = Counter(registry)
        batch = [said("alone", "a", "1"), said("alone", "b", "1"), said("written", "c", "1")]

        outcomes = await project(place, batch, registry=registry)

        assert verdicts(outcomes) == ["applied", "handler_failed", "applied"]
        assert rows(place, NOTES) == [("a", "1"), ("c", "1")]


class TestOutcomeOfAHandler:
    @pytest.mark.parametrize(
        "raised",
        [CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError, Exception],
    )
    async def test_is_a_failure_whatever_it_raises(
        self, place: Place, raised: type[BaseException]
    ) -> None:
        """No exception ends the process, and no message is lost silently."""
        registry = notebook()

        @registry.on("exploded")
        async def exploded(tx: Transaction, message: Message[Text]) -> None:
            raise raised

        batch = [said("written", "a", "1"), said("exploded", "x"), said("written", "b", "2")]

        outcomes = await project(place, batch, registry=registry)

        assert verdicts(outcomes) == ["applied", "handler_failed", "applied"]
        assert f"{raised.__name__}:" in detail_of(outcomes[1])

    async def test_is_none_if_the_task_is_cancelled(self, place: Place) -> None:
        """A cancellation is nobody's fault and leaves the batch as it was."""
        registry, running = notebook(), asyncio.Event()

        @registry.on("waited")
        async def waited(tx: Transaction, message: Message[Text]) -> None:
            running.set()
            await asyncio.Event().wait()

        batch = [said("written", "a", "1"), said("waited", "x")]
        task = asyncio.create_task(project(place, batch, registry=registry))
        await running.wait()
        task.cancel()
        with pytest.raises(CancelledError):
            await task

        assert rows(place, LOGGED) == []

    async def test_is_none_without_memory(self, place: Place) -> None:
        """As when the database cannot commit, the batch is held and applied later."""
        registry, lacks = notebook(), [True]

        @registry.on("large")
        async def large(tx: Transaction, message: Message[Text]) -> None:
            await written(tx, message)
            if lacks:
                raise MemoryError

        batch = [said("written", "a", "1"), said("large", "x", "2", id="m-7")]
        async with projecting(place, registry) as projector:
            with pytest.raises(StoreUnavailable, match="no memory for the handler of 'large', me"):
                await projector.project(arrivals(batch, registry))
            before = rows(place, LOGGED)
            lacks.clear()
            outcomes = await projector.project(arrivals(batch, registry))

        assert before == []
        assert verdicts(outcomes) == ["applied", "applied"]

    async def test_is_a_failure_if_it_cancels_its_task(self, place: Place) -> None:
        """The task goes on, and its neighbours commit, whether or not the handler awaits."""
        registry = notebook()

        @registry.on("cancelled")
        async def cancelled(tx: Transaction, message: Message[Text]) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            if message.payload.text:
                await tx.fetch_all("SELECT 1")

        batch = [said("written", "a", "1"), said("cancelled", "x"), said("cancelled", "y", "2")]

        outcomes = await project(place, batch, registry=registry)

        assert verdicts(outcomes) == ["applied", "handler_failed", "handler_failed"]
        assert "must not cancel the task" in detail_of(outcomes[1])
        assert rows(place, NOTES) == [("a", "1")]

    @pytest.mark.parametrize(
        ("error", "detail"),
        [
            (Unspeakable(), "Unspeakable: (its text cannot be read: SystemExit)"),
            (ValueError("\ud800"), "ValueError: \\ud800"),
        ],
        ids=["raises", "surrogate"],
    )
    async def test_has_a_text_that_can_be_sent(
        self, place: Place, error: Exception, detail: str
    ) -> None:
        """Whatever the text of an error is, its message gets a detail for a header."""
        registry = notebook()

        @registry.on("exploded")
        async def exploded(tx: Transaction, message: Message[Text]) -> None:
            raise error

        (outcome,) = await project(place, [said("exploded", "x")], registry=registry)

        assert detail_of(outcome).endswith(f" failed 3 times: {detail}")

    async def test_is_a_failure_if_a_parameter_ends_the_process(self, place: Place) -> None:
        """SQLite's thread asks a parameter for its value, which may raise anything."""
        registry = notebook()

        class Exits:
            def __conform__(self, protocol: object) -> None:
                raise SystemExit(3)

        @registry.on("exploded")
        async def exploded(tx: Transaction, message: Message[Text]) -> None:
            parameters: Any = ("x", Exits())
            await tx.execute("INSERT INTO notes VALUES (?, ?)", parameters)

        batch = [said("written", "a", "1"), said("exploded", "x")]

        outcomes = await project(place, batch, registry=registry)

        assert verdicts(outcomes) == ["applied", "handler_failed"]
