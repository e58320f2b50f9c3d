from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.builders import completed, planned, reverted, started
from tests.database import change
from tests.histories import distinct, histories
from tests.oracle import expected_rows
from tests.unit.projecting import LOG, arrivals, project, projecting_with, rows
from worker.deliveries import Outcome
from worker.errors import StoreUnavailable
from worker.messages import Arrival
from worker.projections import load
from worker.projector import Projector
from worker.rebuild import rebuild
from worker.store.sqlite.store import Writer


async def tried(projector: Projector, batch: list[Arrival]) -> tuple[list[Outcome], int]:
    """Project a batch as the service does; return the outcomes and how often it was held."""
    held = 0
    while True:
        try:
            return await projector.project(batch), held
        except StoreUnavailable:
            held += 1


class TestTwoWriters:
    """If the lock is taken away, nothing keeps a second process from writing the file."""

    @pytest.mark.parametrize("seed", range(5))
    async def test_that_share_the_messages_in_any_way_give_the_rows_of_one(
        self, tmp_path: Path, seed: int
    ) -> None:
        """A writer forgets what it remembers of a stream once another has committed."""
        rng = Random(seed)
        path, messages = tmp_path / "p.db", histories(rng, events=60)
        waiting, held = messages.copy(), 0
        async with AsyncExitStack() as stack:
            projectors = [
                await stack.enter_async_context(projecting_with(Writer(path))) for _ in range(2)
            ]
            while waiting:
                batch = [waiting.pop() for _ in range(min(len(waiting), rng.randrange(1, 9)))]
                _, times = await tried(rng.choice(projectors), arrivals(batch))
                held += times

        assert rows(path) == expected_rows(messages)
        assert rows(path, LOG) == distinct(messages)
        assert held > 0

    async def test_are_told_of_once_for_each_time_that_another_has_written(
        self, tmp_path: Path
    ) -> None:
        """The operator is told, and the batch is tried again and commits."""
        path = tmp_path / "p.db"
        async with projecting_with(Writer(path)) as projector:
            await projector.project(arrivals([planned("e")]))
            await projector.project(arrivals([started("e")]))
            change(path, "INSERT INTO streams VALUES (99, 'other')")

            with pytest.raises(StoreUnavailable, match="Another connection has committed"):
                await projector.project(arrivals([completed("e")]))
            outcomes, held = await tried(projector, arrivals([reverted("e", "planned")]))

        assert (len(outcomes), held) == (1, 0)


class TestARebuild:
    async def test_beside_which_somebody_commits_changes_nothing(self, tmp_path: Path) -> None:
        """A fold of the log before that commit would remove the row of the new message."""
        path = tmp_path / "p.db"
        await project(path, before := [planned("e-1"), started("e-1")])
        is_first = True

        def meanwhile(*_: Any) -> None:
            nonlocal is_first
            if is_first:
                is_first = False
                change(path, "INSERT INTO streams VALUES (99, 'e-2')")

        async with Writer(path) as writer:
            with pytest.raises(StoreUnavailable, match="Another connection has committed"):
                await rebuild(writer, load(), meanwhile)

            assert rows(path) == expected_rows(before)
            found = await rebuild(writer, load(), lambda done, total: None)

        assert (found.rows, found.differing) == (1, 0)
