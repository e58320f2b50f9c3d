import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.unit.projecting import arrivals, audited, project, projecting
from tests.unit.tales import telling, word
from worker import fold


@contextmanager
def watching(runs: list[int]) -> Iterator[list[int]]:
    """Record how many handlers have run at each turn of the event loop."""
    turns: list[int] = [0]
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def watch() -> None:
        turns.append(len(runs))
        if not ended.is_set():
            loop.call_soon(watch)

    watch()
    yield turns
    ended.set()
    turns.append(len(runs))


def most_between(turns: list[int]) -> int:
    return max(later - earlier for earlier, later in pairwise(turns))


A_TURN = 5


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return what the handlers note; they take so long that a turn is due after `A_TURN`."""
    runs: list[int] = []
    monkeypatch.setattr(fold, "monotonic", lambda: len(runs) * fold.TURN_SECONDS / A_TURN)
    return runs


class TestTurns:
    """However long a fold takes, the other tasks of the event loop get their turns."""

    async def test_are_taken_while_a_late_message_folds_its_stream(
        self, tmp_path: Path, runs: list[int]
    ) -> None:
        """A bounded number of messages is folded between two turns."""
        registry = telling(runs)
        async with projecting(tmp_path / "p.db", registry) as projector:
            await projector.project(arrivals([word(n) for n in range(1, 3_000)], registry))
            runs.clear()

            with watching(runs) as turns:
                await projector.project(arrivals([word(0)], registry))

        assert len(runs) == 3_000
        assert most_between(turns) <= A_TURN + 1

    async def test_are_taken_while_a_batch_comes_in_order(
        self, tmp_path: Path, runs: list[int]
    ) -> None:
        """This also holds without late messages, for one stream and for many."""
        registry = telling(runs)
        for name, events in (("one", 1), ("many", 1_000)):
            batch = [word(n, event_id=f"e-{n % events}") for n in range(2_000)]
            async with projecting(tmp_path / f"{name}.db", registry) as projector:
                arrived = arrivals(batch, registry)
                runs.clear()
                with watching(runs) as turns:
                    await projector.project(arrived)

            assert len(runs) == 2_000
            assert most_between(turns) <= A_TURN + 1

    async def test_are_taken_in_a_rebuild(self, tmp_path: Path, runs: list[int]) -> None:
        """Long and short streams are folded in pieces."""
        registry = telling(runs)
        short = [word(n, event_id=f"e-{n % 100}") for n in range(1_500)]
        await project(tmp_path / "p.db", [word(n) for n in range(1_500)], short, registry=registry)
        runs.clear()

        with watching(runs) as turns:
            found = await audited(tmp_path / "p.db", registry)

        assert (found.messages, found.differing, len(runs)) == (3_000, 0, 3_000)
        assert most_between(turns) <= A_TURN + 1
