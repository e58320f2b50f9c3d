import asyncio
import random
from asyncio import CancelledError
from collections import Counter as Counted
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.builders import Message as Wire
from tests.builders import message
from tests.unit.projecting import (
    arrivals,
    audited,
    change,
    project,
    projecting,
    rows,
    verdicts,
)
from worker import Message, Payload, Transaction
from worker.deliveries import Outcome
from worker.errors import StoreUnavailable, StoreUnusable
from worker.registry import Registry

# Far beyond what any batch here takes.
ENDLESS_RUNS = 5_000
NOTES = "SELECT event_id, text FROM notes ORDER BY event_id"
LOGGED = "SELECT id FROM log ORDER BY id"
FORBIDDEN = "CREATE TRIGGER kept BEFORE DELETE ON notes BEGIN SELECT RAISE(ABORT, 'no'); END"
TABLE = "CREATE TABLE notes (event_id TEXT PRIMARY KEY, text TEXT NOT NULL CHECK (text <> 'bad'))"


class Text(Payload):
    """Some text."""

    text: str = ""


class Failures:
    """How often a handler ran, and how often it is to fail."""

    def __init__(self, failures: int) -> None:
        """Fail this many times."""
        self.left = failures
        self.runs = 0


async def written(tx: Transaction, message: Message[Text]) -> None:
    sql = "INSERT INTO notes VALUES (?, ?) ON CONFLICT DO UPDATE SET text = text || ?"
    await tx.execute(sql, (message.event_id, message.payload.text, message.payload.text))


def notebook() -> Registry:
    """Return a projection with one handler for each way in which a handler can fail."""
    registry = Registry()
    registry.projection(table="notes", version=1, schema=(TABLE,))
    registry.on("written")(written)

    @registry.on("ran_sql")
    async def ran_sql(tx: Transaction, message: Message[Text]) -> None:
        await tx.execute("INSERT INTO notes VALUES (?, 'x') ON CONFLICT DO NOTHING", ("half",))
        await tx.execute(message.payload.text)

    @registry.on("asked_sql")
    async def asked_sql(tx: Transaction, message: Message[Text]) -> None:
        await tx.fetch_all(message.payload.text)

    @registry.on("raised")
    async def raised(tx: Transaction, message: Message[Text]) -> None:
        await tx.execute("INSERT INTO notes VALUES (?, 'x') ON CONFLICT DO NOTHING", ("half",))
        raise KeyError(message.payload.text)

    @registry.on("needs_row")
    async def needs_row(tx: Transaction, message: Message[Text]) -> None:
        if not await tx.fetch_one("SELECT 1 FROM notes WHERE event_id = ?", (message.event_id,)):
            raise LookupError("no row")

    @registry.on("removed")
    async def removed(tx: Transaction, message: Message[Text]) -> None:
        await tx.execute("DELETE FROM notes WHERE event_id = ?", (message.event_id,))

    return registry


def flaky_notebook(left: Failures) -> Registry:
    """Return a projection whose handler fails a given number of times."""
    registry = notebook()

    @registry.on("flaky")
    async def flaky(tx: Transaction, message: Message[Text]) -> None:
        left.runs += 1
        await written(tx, message)
        if left.left:
            left.left -= 1
            raise TimeoutError("not yet")

    return registry


class Unspeakable(Exception):
    """An error that cannot be put into words."""

    def __str__(self) -> str:
        raise SystemExit


def detail_of(outcome: Outcome) -> str:
    assert outcome.rejected is not None
    return outcome.rejected.detail


def said(kind: str, event_id: str, text: str = "", **envelope: Any) -> Wire:
    return message(kind, {"event_id": event_id, "text": text}, **envelope)


FAILING = {
    "raises": (said("raised", "x", "why"), "KeyError: 'why'"),
    "constraint": (said("written", "x", "bad"), "IntegrityError: CHECK constraint failed"),
    "no table": (said("ran_sql", "x", "DELETE FROM nowhere"), "no such table: nowhere"),
    "no parameter": (said("ran_sql", "x", "DELETE FROM notes WHERE text = ?"), "ProgrammingError"),
    "no sql": (said("ran_sql", "x", "nonsense"), "syntax error"),
    "query to execute": (said("ran_sql", "x", "SELECT 1"), "ProgrammingError"),
    "no table to ask": (said("asked_sql", "x", "SELECT * FROM nowhere"), "no such table: nowhere"),
    "commit": (said("ran_sql", "x", "commit"), "must not begin or end transactions"),
    "commit to ask": (said("asked_sql", "x", " COMMIT"), "must not begin or end transactions"),
    "rollback": (
        said("ran_sql", "x", "INSERT OR ROLLBACK INTO notes VALUES ('x', 'bad')"),
        "must not begin or end transactions",
    ),
    "null": (said("ran_sql", "x", "INSERT INTO notes VALUES ('x', NULL)"), "NOT NULL constraint"),
    "log": (said("ran_sql", "x", "DELETE FROM log"), "may only read, and"),
    "quoted": (said("ran_sql", "x", 'UPDATE main."file" SET commits = 0'), "may only read, and"),
    "log to ask": (said("asked_sql", "x", "DELETE FROM Log RETURNING id"), "may only read, and"),
    "from a query": (
        said("ran_sql", "x", "WITH x AS (SELECT 'x') INSERT INTO kinds SELECT * FROM x"),
        "may only read, and",
    ),
    "definition": (said("asked_sql", "x", "DROP TABLE notes"), "may only read, and"),
    "pragma": (said("asked_sql", "x", "PRAGMA user_version = 9"), "may only read, and"),
}


class TestHandlerThatFails:
    @pytest.mark.parametrize(("failing", "detail"), FAILING.values(), ids=FAILING)
    @pytest.mark.parametrize(("batch_size", "again"), [(1, False), (3, False), (3, True)])
    async def test_costs_its_neighbours_nothing(
        self, tmp_path: Path, failing: Wire, detail: str, batch_size: int, *, again: bool
    ) -> None:
        """Its message is rejected with the error, and leaves no trace in the file."""
        batch = [said("written", "a", "1", id="a"), failing, said("written", "b", "2", id="b")]
        batches = [batch[n : n + batch_size] for n in range(0, 3, batch_size)]

        outcomes = await project(tmp_path / "p.db", *batches, registry=notebook(), again=again)

        assert verdicts(outcomes) == ["applied", "handler_failed", "applied"]
        assert outcomes[1].rejected is not None
        assert f"of {failing['kind']!r} failed 3 times" in outcomes[1].rejected.detail
        assert detail in outcomes[1].rejected.detail
        assert rows(tmp_path / "p.db", NOTES) == [("a", "1"), ("b", "2")]
        assert rows(tmp_path / "p.db", LOGGED) == [("a",), ("b",)]

    async def test_costs_its_own_stream_nothing(self, tmp_path: Path) -> None:
        """The stream continues as if the message had never been published."""
        failing = said("raised", "a", sequence=2)
        first, last = said("written", "a", "1", sequence=1), said("written", "a", "3", sequence=3)

        outcomes = await project(tmp_path / "p.db", [first, failing, last], registry=notebook())

        assert verdicts(outcomes) == ["applied", "handler_failed", "applied"]
        assert rows(tmp_path / "p.db", NOTES) == [("a", "13")]
        assert (await audited(tmp_path / "p.db", notebook())).differing == 0

    @pytest.mark.parametrize("again", [False, True])
    async def test_fails_again_beside_what_is_known(self, tmp_path: Path, *, again: bool) -> None:
        """When the same batch is redelivered, it is decided in the same way."""
        batch = [said("written", "a", "1"), said("raised", "a"), said("written", "a", "3")]
        await project(tmp_path / "p.db", batch, registry=notebook())

        outcomes = await project(tmp_path / "p.db", batch, registry=notebook(), again=again)

        assert verdicts(outcomes) == ["duplicate", "handler_failed", "duplicate"]
        assert rows(tmp_path / "p.db", NOTES) == [("a", "13")]

    async def test_leaves_no_head_behind(self, tmp_path: Path) -> None:
        """A rejected message makes no later message late."""
        failing, next_ = said("raised", "a", sequence=9), said("written", "a", "1", sequence=1)

        outcomes = await project(tmp_path / "p.db", [failing], [next_], registry=notebook())

        assert verdicts(outcomes) == ["handler_failed", "applied"]

    @pytest.mark.parametrize("second", ["written", "raised"])
    async def test_takes_no_other_content_of_its_id_along(
        self, tmp_path: Path, second: str
    ) -> None:
        """The other message is tried by itself, as it would be in the next batch."""
        batch = [said("raised", "a", "one", id="i"), said(second, "a", "two", id="i")]

        outcomes = await project(tmp_path / "a.db", batch, registry=notebook())
        one_by_one = await project(tmp_path / "b.db", *([e] for e in batch), registry=notebook())

        assert verdicts(outcomes) == verdicts(one_by_one)
        assert [o.rejected for o in outcomes] == [o.rejected for o in one_by_one]

    async def test_decides_the_rest_of_the_batch_as_ever(self, tmp_path: Path) -> None:
        """Duplicates, late messages and conflicts are found one by one, too."""
        first = said("written", "a", "2", id="m", sequence=2)
        batch = [
            said("raised", "x"), first, said("written", "a", "1", sequence=1), first,
            said("removed", "a", id="m"), said("removed", "b"),
        ]  # fmt: skip

        outcomes = await project(tmp_path / "p.db", batch, registry=notebook())

        assert verdicts(outcomes) == [
            "handler_failed", "applied", "late", "duplicate", "id_conflict", "orphan",
        ]  # fmt: skip
        assert rows(tmp_path / "p.db", NOTES) == [("a", "12")]


class TestAHandlerThatCatches:
    async def test_hides_no_failure_of_another(self, tmp_path: Path) -> None:
        """Statements deferred behind a failed one are still written."""
        registry = notebook()

        @registry.on("caught")
        async def caught(tx: Transaction, message: Message[Text]) -> None:
            with suppress(Exception):
                await tx.fetch_one("SELECT 1")

        good = [said("written", f"g{n}", "1", id=f"g{n}") for n in range(9)]
        batch = [*good, said("written", "x", "bad"), *(said("caught", f"c{n}") for n in range(9))]

        outcomes = await project(tmp_path / "p.db", batch, registry=registry)

        assert verdicts(outcomes) == ["applied"] * 9 + ["handler_failed"] + ["orphan"] * 9
        assert len(rows(tmp_path / "p.db", NOTES)) == 9


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
        self, tmp_path: Path, failures: int
    ) -> None:
        """It gets three attempts alone, then runs with its batch; failures leave no trace."""
        counted = Failures(failures)

        outcomes = await project(
            tmp_path / "p.db", [said("flaky", "a", "1")], registry=flaky_notebook(counted)
        )

        assert verdicts(outcomes) == ["applied"]
        assert counted.runs == failures + 2
        assert rows(tmp_path / "p.db", NOTES) == [("a", "1")]

    async def test_ends(self, tmp_path: Path) -> None:
        """After the third attempt alone, the message is rejected."""
        counted = Failures(4)

        outcomes = await project(
            tmp_path / "p.db", [said("flaky", "a", "1")], registry=flaky_notebook(counted)
        )

        assert verdicts(outcomes) == ["handler_failed"]
        assert counted.runs == 4

    async def test_ends_if_handlers_fail_at_random(self, tmp_path: Path) -> None:
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
            tmp_path / "p.db", [said("flaky", each, "1") for each in streams], registry=registry
        )

        failed = {o.message_id for o in outcomes if o.rejected}
        applied = Counted(o.event_id for o in outcomes if o.message_id not in failed)
        assert len(failed) <= 2
        assert dict(rows(tmp_path / "p.db", NOTES)) == {e: "1" * n for e, n in applied.items()}
        assert (await audited(tmp_path / "p.db", flaky_notebook(Failures(0)))).differing == 0

    async def test_ends_if_a_handler_fails_beside_another_stream(self, tmp_path: Path) -> None:
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

        outcomes = await project(tmp_path / "p.db", batch, registry=registry)

        assert verdicts(outcomes) == ["applied", "handler_failed", "applied"]
        assert rows(tmp_path / "p.db", NOTES) == [("a", "1"), ("c", "1")]


class TestOutcomeOfAHandler:
    @pytest.mark.parametrize(
        "raised",
        [CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError, Exception],
    )
    async def test_is_a_failure_whatever_it_raises(
        self, tmp_path: Path, raised: type[BaseException]
    ) -> None:
        """No exception ends the process, and no message is lost silently."""
        registry = notebook()

        @registry.on("exploded")
        async def exploded(tx: Transaction, message: Message[Text]) -> None:
            raise raised

        batch = [said("written", "a", "1"), said("exploded", "x"), said("written", "b", "2")]

        outcomes = await project(tmp_path / "p.db", batch, registry=registry)

        assert verdicts(outcomes) == ["applied", "handler_failed", "applied"]
        assert f"{raised.__name__}:" in detail_of(outcomes[1])

    async def test_is_none_if_the_task_is_cancelled(self, tmp_path: Path) -> None:
        """A cancellation is nobody's fault and leaves the batch as it was."""
        registry, running = notebook(), asyncio.Event()

        @registry.on("waited")
        async def waited(tx: Transaction, message: Message[Text]) -> None:
            running.set()
            await asyncio.Event().wait()

        batch = [said("written", "a", "1"), said("waited", "x")]
        task = asyncio.create_task(project(tmp_path / "p.db", batch, registry=registry))
        await running.wait()
        task.cancel()
        with pytest.raises(CancelledError):
            await task

        assert rows(tmp_path / "p.db", LOGGED) == []

    async def test_is_none_without_memory(self, tmp_path: Path) -> None:
        """As when the database cannot commit, the batch is held and applied later."""
        registry, lacks = notebook(), [True]

        @registry.on("large")
        async def large(tx: Transaction, message: Message[Text]) -> None:
            await written(tx, message)
            if lacks:
                raise MemoryError

        batch = [said("written", "a", "1"), said("large", "x", "2", id="m-7")]
        async with projecting(tmp_path / "p.db", registry) as projector:
            with pytest.raises(StoreUnavailable, match="no memory for the handler of 'large', me"):
                await projector.project(arrivals(batch, registry))
            before = rows(tmp_path / "p.db", LOGGED)
            lacks.clear()
            outcomes = await projector.project(arrivals(batch, registry))

        assert before == []
        assert verdicts(outcomes) == ["applied", "applied"]

    async def test_is_a_failure_if_it_cancels_its_task(self, tmp_path: Path) -> None:
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

        outcomes = await project(tmp_path / "p.db", batch, registry=registry)

        assert verdicts(outcomes) == ["applied", "handler_failed", "handler_failed"]
        assert "must not cancel the task" in detail_of(outcomes[1])
        assert rows(tmp_path / "p.db", NOTES) == [("a", "1")]

    @pytest.mark.parametrize(
        ("error", "detail"),
        [
            (Unspeakable(), "Unspeakable: (its text cannot be read: SystemExit)"),
            (ValueError("\ud800"), "ValueError: \\ud800"),
        ],
        ids=["raises", "surrogate"],
    )
    async def test_has_a_text_that_can_be_sent(
        self, tmp_path: Path, error: Exception, detail: str
    ) -> None:
        """Whatever the text of an error is, its message gets a detail for a header."""
        registry = notebook()

        @registry.on("exploded")
        async def exploded(tx: Transaction, message: Message[Text]) -> None:
            raise error

        (outcome,) = await project(tmp_path / "p.db", [said("exploded", "x")], registry=registry)

        assert detail_of(outcome).endswith(f" failed 3 times: {detail}")

    async def test_is_a_failure_if_a_parameter_ends_the_process(self, tmp_path: Path) -> None:
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

        outcomes = await project(tmp_path / "p.db", batch, registry=registry)

        assert verdicts(outcomes) == ["applied", "handler_failed"]


class Counter:
    """How often handlers ran."""

    def __init__(self, registry: Registry) -> None:
        """Count the runs of a registry's handlers."""
        self.runs = 0
        for kind, handler in registry.handlers.items():
            registry.handlers[kind] = self._counted(handler)

    def _counted(self, handler: Any) -> Any:
        async def counted(tx: Transaction, message: Any) -> None:
            self.runs += 1
            await handler(tx, message)

        return counted


class TestTheCostOfAFailure:
    @pytest.mark.parametrize("failing", ["raises", "constraint", "no sql", "no table to ask"])
    async def test_is_a_second_pass_for_the_others(self, tmp_path: Path, failing: str) -> None:
        """This holds however many streams fail, and in whatever way."""
        bad, _ = FAILING[failing]
        good = [said("written", f"g-{n}", "1") for n in range(90)]
        fails = [said(bad["kind"], f"x-{n}", bad["payload"]["text"]) for n in range(10)]
        batch = [each for n in range(10) for each in (*good[9 * n : 9 * n + 9], fails[n])]
        registry = notebook()
        counter = Counter(registry)

        outcomes = await project(tmp_path / "p.db", batch, registry=registry)

        assert verdicts(outcomes) == (["applied"] * 9 + ["handler_failed"]) * 10
        assert counter.runs <= 2 * len(good) + (1 + 3) * len(fails)

    async def test_is_a_few_folds_of_its_own_stream(self, tmp_path: Path) -> None:
        """This also holds among many late messages, which are all applied."""
        old = [said("written", "a", "1", sequence=n) for n in range(1000, 1100)]
        late = [said("written", "a", "1", sequence=n) for n in range(100)]
        late[50] = said("raised", "a", sequence=50)
        registry = notebook()
        await project(tmp_path / "p.db", old, registry=registry)
        counter = Counter(registry)

        outcomes = await project(tmp_path / "p.db", late, registry=registry)

        assert verdicts(outcomes) == ["late"] * 50 + ["handler_failed"] + ["late"] * 49
        assert counter.runs <= 4 * len(old + late)
        assert rows(tmp_path / "p.db", NOTES) == [("a", "1" * 199)]

    async def test_is_a_few_folds_if_all_fail(self, tmp_path: Path) -> None:
        """A hundred bad messages of one stream are found in one pass."""
        registry = notebook()
        counter = Counter(registry)
        good = [said("written", "a", "1") for _ in range(20)]
        batch = [*good, *(said("raised", "a") for _ in range(100))]

        outcomes = await project(tmp_path / "p.db", batch, registry=registry)

        assert verdicts(outcomes) == ["applied"] * 20 + ["handler_failed"] * 100
        assert counter.runs <= 5 * len(batch)


class TestALateMessage:
    async def test_is_rejected_if_it_breaks_an_older_one(self, tmp_path: Path) -> None:
        """The rows and the log stay as without it, and the error names the older message."""
        registry = notebook()
        before = [said("written", "a", "1", sequence=1), said("needs_row", "a", id="o", sequence=3)]
        late = said("removed", "a", sequence=2)

        outcomes = await project(
            tmp_path / "p.db", before, [late, said("written", "b", "2")], registry=registry
        )

        assert verdicts(outcomes) == ["applied", "applied", "handler_failed", "applied"]
        assert detail_of(outcomes[2]) == (
            "The message is late, and its event cannot be folded again: the handler of "
            "'needs_row' failed for an older message, 'o': LookupError: no row"
        )
        assert rows(tmp_path / "p.db", NOTES) == [("a", "1"), ("b", "2")]
        assert rows(tmp_path / "p.db", "SELECT count(*) FROM log") == [(3,)]
        assert (await audited(tmp_path / "p.db", registry)).differing == 0

    async def test_that_breaks_an_older_one_is_found_among_others(self, tmp_path: Path) -> None:
        """The other late messages of the same stream are applied."""
        registry = notebook()
        before = [said("written", "a", "1", sequence=1), said("needs_row", "a", sequence=50)]
        late = [said("written", "a", "2", sequence=n) for n in range(2, 9)]
        late.insert(3, said("removed", "a", sequence=40))

        outcomes = await project(tmp_path / "p.db", before, late, registry=registry)

        assert verdicts(outcomes[2:]) == ["late"] * 3 + ["handler_failed"] + ["late"] * 4
        assert rows(tmp_path / "p.db", NOTES) == [("a", "1" + "2" * 7)]
        assert (await audited(tmp_path / "p.db", registry)).differing == 0

    async def test_names_an_older_one_that_fails_without_it(self, tmp_path: Path) -> None:
        """All late ones are rejected in a few folds; messages in order are applied."""
        before = [said("written", "a", "1", sequence=n) for n in range(50, 60)]
        before[3] = said("flaky", "a", "f", id="o", sequence=53)
        await project(tmp_path / "p.db", before, registry=flaky_notebook(Failures(0)))
        batch = [said("written", "a", "2", sequence=n) for n in (*range(20), 99)]
        registry = flaky_notebook(Failures(1_000))
        counter = Counter(registry)

        outcomes = await project(tmp_path / "p.db", batch, registry=registry)

        assert verdicts(outcomes) == ["handler_failed"] * 20 + ["applied"]
        assert "'flaky' failed for an older message, 'o': TimeoutError" in detail_of(outcomes[7])
        assert counter.runs <= 5 * len(before + batch)

    async def test_names_an_older_one_that_fits_no_model(self, tmp_path: Path) -> None:
        """A release may have a stricter model than the one that accepted the old message."""
        strict = Registry()
        strict.projection(table="notes", version=1, schema=(TABLE,))

        class Strict(Payload):
            text: int

        @strict.on("written")
        async def written_strictly(tx: Transaction, message: Message[Strict]) -> None:
            await tx.fetch_all("SELECT 1")

        old = said("written", "a", "old", id="o", sequence=2)
        late = message("written", {"event_id": "a", "text": 1}, sequence=1)
        await project(tmp_path / "p.db", [old], registry=notebook())

        (outcome,) = await project(tmp_path / "p.db", [late], registry=strict)

        assert "'written' failed for an older message, 'o': Validation" in detail_of(outcome)

    async def test_names_the_rows_that_cannot_be_removed(self, tmp_path: Path) -> None:
        """A user's trigger may prevent what a fold needs."""
        old, late = said("written", "a", "2", sequence=2), said("written", "a", "1", sequence=1)
        await project(tmp_path / "p.db", [old], registry=notebook())
        change(tmp_path / "p.db", FORBIDDEN)

        (outcome,) = await project(tmp_path / "p.db", [late], registry=notebook())

        assert "the rows of its event cannot be removed: IntegrityError: no" in detail_of(outcome)


def speaking(letter: str) -> Any:
    sql = f"INSERT INTO notes VALUES (:e, '{letter}') ON CONFLICT DO UPDATE SET text = text || "

    async def spoken(tx: Transaction, message: Message[Payload]) -> None:
        await tx.execute(f"{sql} '{letter}'", {"e": message.event_id})
        if letter == "c":
            await tx.execute(f"{sql} 'd'", {"e": message.event_id})

    return spoken


class TestRegrouping:
    async def test_keeps_the_order_of_each_stream(self, tmp_path: Path) -> None:
        """Statements of many streams run together, but each stream's run in order."""
        registry = Registry()
        registry.projection(table="notes", version=1, schema=(TABLE,))
        for letter in "abc":
            registry.on(letter)(speaking(letter))
        random_ = random.Random(7)
        streams = [f"e-{random_.randrange(20):02}" for _ in range(300)]
        batch = [message(random_.choice("abc"), {"event_id": e}) for e in streams]
        spoken: dict[str, str] = {}
        for each in batch:
            event_id = each["payload"]["event_id"]
            spoken[event_id] = spoken.get(event_id, "") + each["kind"].replace("c", "cd")

        await project(tmp_path / "p.db", batch, registry=registry)

        assert rows(tmp_path / "p.db", NOTES) == sorted(spoken.items())
