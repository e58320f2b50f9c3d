import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.builders import Message as Wire
from tests.builders import message
from tests.unit.projecting import audited, project, rows, verdicts
from worker import Message, Payload, Transaction
from worker.errors import StoreUnusable
from worker.registry import Registry

NOTES = "SELECT event_id, text FROM notes ORDER BY event_id"
LOGGED = "SELECT id FROM log ORDER BY id"
TABLE = "CREATE TABLE notes (event_id TEXT PRIMARY KEY, text TEXT NOT NULL CHECK (text <> 'bad'))"


class Text(Payload):
    """Some text."""

    text: str = ""


class Failures:
    """How often a handler was run, and how often it is to fail."""

    def __init__(self, failures: int) -> None:
        """Fail so often."""
        self.left = failures
        self.runs = 0


async def written(tx: Transaction, message: Message[Text]) -> None:
    sql = "INSERT INTO notes VALUES (?, ?) ON CONFLICT DO UPDATE SET text = text || ?"
    await tx.execute(sql, (message.event_id, message.payload.text, message.payload.text))


def notebook() -> Registry:
    """Give a projection with a handler for each way in which one can fail."""
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
    """Give a projection with a handler that fails so often."""
    registry = notebook()

    @registry.on("flaky")
    async def flaky(tx: Transaction, message: Message[Text]) -> None:
        left.runs += 1
        await written(tx, message)
        if left.left:
            left.left -= 1
            raise TimeoutError("not yet")

    return registry


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
}


class TestHandlerThatFails:
    @pytest.mark.parametrize(("failing", "detail"), FAILING.values(), ids=FAILING)
    @pytest.mark.parametrize(("batch_size", "again"), [(1, False), (3, False), (3, True)])
    async def test_costs_its_neighbours_nothing(
        self, tmp_path: Path, failing: Wire, detail: str, batch_size: int, *, again: bool
    ) -> None:
        """Its message is rejected with what went wrong, and has left no trace in the file."""
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
        """The stream goes on as if the message had never been."""
        failing = said("raised", "a", sequence=2)
        first, last = said("written", "a", "1", sequence=1), said("written", "a", "3", sequence=3)

        outcomes = await project(tmp_path / "p.db", [first, failing, last], registry=notebook())

        assert verdicts(outcomes) == ["applied", "handler_failed", "applied"]
        assert rows(tmp_path / "p.db", NOTES) == [("a", "13")]
        assert (await audited(tmp_path / "p.db", notebook())).differing == 0

    async def test_leaves_no_head_behind(self, tmp_path: Path) -> None:
        """What was rejected makes no later message late."""
        failing, next_ = said("raised", "a", sequence=9), said("written", "a", "1", sequence=1)

        outcomes = await project(tmp_path / "p.db", [failing], [next_], registry=notebook())

        assert verdicts(outcomes) == ["handler_failed", "applied"]

    async def test_decides_the_rest_of_the_batch_as_ever(self, tmp_path: Path) -> None:
        """Duplicates, late ones and conflicts are found one by one, too."""
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
        """What waited behind a statement that failed is written all the same."""
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
        """Nothing of the batch commits by itself, and no outcome says that it did."""
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
        """Once with its batch and three times alone; what failed left nothing behind."""
        counted = Failures(failures)

        outcomes = await project(
            tmp_path / "p.db", [said("flaky", "a", "1")], registry=flaky_notebook(counted)
        )

        assert verdicts(outcomes) == ["applied"]
        assert counted.runs == failures + 1
        assert rows(tmp_path / "p.db", NOTES) == [("a", "1")]

    async def test_ends(self, tmp_path: Path) -> None:
        """After the third attempt alone the message is rejected."""
        counted = Failures(4)

        outcomes = await project(
            tmp_path / "p.db", [said("flaky", "a", "1")], registry=flaky_notebook(counted)
        )

        assert verdicts(outcomes) == ["handler_failed"]
        assert counted.runs == 4


class TestRefold:
    async def test_that_fails_rejects_the_late_message(self, tmp_path: Path) -> None:
        """The rows and the log stay those of the stream without it."""
        registry = notebook()
        before = [said("written", "a", "1", sequence=1), said("needs_row", "a", sequence=3)]
        late = said("removed", "a", sequence=2)

        outcomes = await project(
            tmp_path / "p.db", before, [late, said("written", "b", "2")], registry=registry
        )

        assert verdicts(outcomes) == ["applied", "applied", "handler_failed", "applied"]
        assert rows(tmp_path / "p.db", NOTES) == [("a", "1"), ("b", "2")]
        assert rows(tmp_path / "p.db", "SELECT count(*) FROM log") == [(3,)]
        assert (await audited(tmp_path / "p.db", registry)).differing == 0


def speaking(letter: str) -> Any:
    sql = f"INSERT INTO notes VALUES (:e, '{letter}') ON CONFLICT DO UPDATE SET text = text || "

    async def spoken(tx: Transaction, message: Message[Payload]) -> None:
        await tx.execute(f"{sql} '{letter}'", {"e": message.event_id})
        if letter == "c":
            await tx.execute(f"{sql} 'd'", {"e": message.event_id})

    return spoken


class TestRegrouping:
    async def test_keeps_the_order_of_each_stream(self, tmp_path: Path) -> None:
        """Statements of many streams run together, and each stream's in its own order."""
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
