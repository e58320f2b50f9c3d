from pathlib import Path
from random import Random

import pytest

from tests.database import log, rows
from tests.histories import distinct, histories
from tests.oracle import expected_rows
from tests.processes import StartWorker
from tests.queues import Queues

SEED = 20_261_123


class TestAnyOrder:
    @pytest.mark.parametrize("batch_size", [1, 7, 500])
    async def test_and_any_duplicates_give_the_same_rows(
        self, queues: Queues, database: Path, start_worker: StartWorker, batch_size: int
    ) -> None:
        """The rows equal those of an independent fold, however the messages share batches."""
        rng = Random(SEED + batch_size)
        worker = await start_worker(batch_size=batch_size)
        await worker.wait_for_log("connected")
        published = []

        for part in range(4):
            # The same events in two parts: late messages across batches and across histories.
            messages = histories(rng, events=30, name=f"e-{part // 2}")
            await queues.publish(messages)
            published += messages
        await worker.wait_until_settled(len(published))

        assert rows(database) == expected_rows(published)
        assert log(database) == distinct(published)
        assert await queues.take_dead_letters() == []
        assert worker.total("late") > 0
        assert worker.total("orphan") > 0
        assert worker.total("duplicate") == len(published) - len(distinct(published))
