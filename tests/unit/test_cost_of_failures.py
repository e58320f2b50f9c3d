"""How often handlers run when some messages of a batch fail."""

import pytest

from tests.places import Place
from tests.unit.notebook import FAILING, NOTES, Counter, notebook, said
from tests.unit.projecting import project, rows, verdicts


class TestTheCostOfAFailure:
    @pytest.mark.parametrize("failing", ["raises", "constraint", "no sql", "no table to ask"])
    async def test_is_a_second_pass_for_the_others(self, place: Place, failing: str) -> None:
        """This holds however many streams fail, and in whatever way."""
        bad, _ = FAILING[failing]
        good = [said("written", f"g-{n}", "1") for n in range(90)]
        fails = [said(bad["kind"], f"x-{n}", bad["payload"]["text"]) for n in range(10)]
        batch = [each for n in range(10) for each in (*good[9 * n : 9 * n + 9], fails[n])]
        registry = notebook()
        counter = Counter(registry)

        outcomes = await project(place, batch, registry=registry)

        assert verdicts(outcomes) == (["applied"] * 9 + ["handler_failed"]) * 10
        assert counter.runs <= 2 * len(good) + (1 + 3) * len(fails)

    async def test_is_a_few_folds_of_its_own_stream(self, place: Place) -> None:
        """This also holds among many late messages, which are all applied."""
        old = [said("written", "a", "1", sequence=n) for n in range(1000, 1100)]
        late = [said("written", "a", "1", sequence=n) for n in range(100)]
        late[50] = said("raised", "a", sequence=50)
        registry = notebook()
        await project(place, old, registry=registry)
        counter = Counter(registry)

        outcomes = await project(place, late, registry=registry)

        assert verdicts(outcomes) == ["late"] * 50 + ["handler_failed"] + ["late"] * 49
        assert counter.runs <= 4 * len(old + late)
        assert rows(place, NOTES) == [("a", "1" * 199)]

    async def test_is_a_few_folds_if_all_fail(self, place: Place) -> None:
        """A hundred bad messages of one stream are found in one pass."""
        registry = notebook()
        counter = Counter(registry)
        good = [said("written", "a", "1") for _ in range(20)]
        batch = [*good, *(said("raised", "a") for _ in range(100))]

        outcomes = await project(place, batch, registry=registry)

        assert verdicts(outcomes) == ["applied"] * 20 + ["handler_failed"] * 100
        assert counter.runs <= 5 * len(batch)
