"""Late messages whose event cannot be folded again."""

from pathlib import Path

from tests.builders import message
from tests.places import Place, change
from tests.unit.notebook import (
    NOTES,
    TABLE,
    Counter,
    Failures,
    detail_of,
    flaky_notebook,
    notebook,
    said,
)
from tests.unit.projecting import audited, project, rows, verdicts
from worker import Message, Payload, Transaction
from worker.registry import Registry

FORBIDDEN = "CREATE TRIGGER kept BEFORE DELETE ON notes BEGIN SELECT RAISE(ABORT, 'no'); END"


class TestALateMessage:
    async def test_is_rejected_if_it_breaks_an_older_one(self, place: Place) -> None:
        """The rows and the log stay as without it, and the error names the older message."""
        registry = notebook()
        before = [said("written", "a", "1", sequence=1), said("needs_row", "a", id="o", sequence=3)]
        late = said("removed", "a", sequence=2)

        outcomes = await project(
            place, before, [late, said("written", "b", "2")], registry=registry
        )

        assert verdicts(outcomes) == ["applied", "applied", "handler_failed", "applied"]
        assert detail_of(outcomes[2]) == (
            "The message is late, and its event cannot be folded again: the handler of "
            "'needs_row' failed for an older message, 'o': LookupError: no row"
        )
        assert rows(place, NOTES) == [("a", "1"), ("b", "2")]
        assert rows(place, "SELECT count(*) FROM log") == [(3,)]
        assert (await audited(place, registry)).differing == 0

    async def test_that_breaks_an_older_one_is_found_among_others(self, place: Place) -> None:
        """The other late messages of the same stream are applied."""
        registry = notebook()
        before = [said("written", "a", "1", sequence=1), said("needs_row", "a", sequence=50)]
        late = [said("written", "a", "2", sequence=n) for n in range(2, 9)]
        late.insert(3, said("removed", "a", sequence=40))

        outcomes = await project(place, before, late, registry=registry)

        assert verdicts(outcomes[2:]) == ["late"] * 3 + ["handler_failed"] + ["late"] * 4
        assert rows(place, NOTES) == [("a", "1" + "2" * 7)]
        assert (await audited(place, registry)).differing == 0

    async def test_names_an_older_one_that_fails_without_it(self, place: Place) -> None:
        """All late ones are rejected in a few folds; messages in order are applied."""
        before = [said("written", "a", "1", sequence=n) for n in range(50, 60)]
        before[3] = said("flaky", "a", "f", id="o", sequence=53)
        await project(place, before, registry=flaky_notebook(Failures(0)))
        batch = [said("written", "a", "2", sequence=n) for n in (*range(20), 99)]
        registry = flaky_notebook(Failures(1_000))
        counter = Counter(registry)

        outcomes = await project(place, batch, registry=registry)

        assert verdicts(outcomes) == ["handler_failed"] * 20 + ["applied"]
        assert "'flaky' failed for an older message, 'o': TimeoutError" in detail_of(outcomes[7])
        assert counter.runs <= 5 * len(before + batch)

    async def test_names_an_older_one_that_fits_no_model(self, place: Place) -> None:
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
        await project(place, [old], registry=notebook())

        (outcome,) = await project(place, [late], registry=strict)

        assert "'written' failed for an older message, 'o': Validation" in detail_of(outcome)

    async def test_names_the_rows_that_cannot_be_removed(self, tmp_path: Path) -> None:
        """A user's trigger may prevent what a fold needs."""
        old, late = said("written", "a", "2", sequence=2), said("written", "a", "1", sequence=1)
        await project(tmp_path / "p.db", [old], registry=notebook())
        change(tmp_path / "p.db", FORBIDDEN)

        (outcome,) = await project(tmp_path / "p.db", [late], registry=notebook())

        assert "the rows of its event cannot be removed: IntegrityError: no" in detail_of(outcome)
