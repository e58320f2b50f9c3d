from pathlib import Path

from tests.builders import body, completed, planned, started
from tests.database import count_log, rows
from tests.oracle import expected_rows
from tests.processes import StartWorker
from tests.queues import Queues


class TestRawMessages:
    async def test_become_rows(
        self, queues: Queues, database: Path, start_worker: StartWorker
    ) -> None:
        """Published messages are projected and acked, and none is left for another consumer."""
        messages = [planned("e-1"), started("e-1"), planned("e-2"), started("e-3")]
        worker = await start_worker()
        await worker.wait_for_log("connected")

        await queues.publish(messages)
        await worker.wait_until_settled(4)
        worker.terminate()

        assert await worker.exit_code() == 0
        assert await queues.left() == 0
        assert rows(database) == expected_rows(messages)
        assert await queues.take_dead_letters() == []

    async def test_that_waited_for_a_worker_become_rows(
        self, queues: Queues, database: Path, start_worker: StartWorker
    ) -> None:
        """Messages that waited are projected in batches no larger than the setting."""
        messages = [make(f"e-{n}") for n in range(150) for make in (planned, completed)]
        await queues.declare()
        await queues.publish(messages)

        worker = await start_worker(batch_size=40, prefetch=90)
        await worker.wait_until_settled(300)

        assert (await queues.depth()).ready == 0
        assert rows(database) == expected_rows(messages)
        assert max(line["messages"] for line in worker.said("batch_committed")) <= 40

    async def test_published_twice_have_one_effect(
        self, queues: Queues, database: Path, start_worker: StartWorker
    ) -> None:
        """A duplicate is acked and counted, in the same batch, a later one or a later worker."""
        messages = [planned("e-1"), started("e-1")]
        await queues.declare()
        await queues.publish(messages * 2)
        first = await start_worker()
        await first.wait_until_settled(4)
        await queues.publish(messages)
        await first.wait_until_settled(6)
        await first.kill()
        await queues.left()

        second = await start_worker()
        await queues.publish(messages)
        await second.wait_until_settled(2)

        assert (first.total("duplicate"), second.total("duplicate")) == (4, 2)
        assert count_log(database) == 2
        assert rows(database) == expected_rows(messages)


class TestTheCap:
    async def test_is_the_one_that_is_set(
        self, queues: Queues, database: Path, start_worker: StartWorker
    ) -> None:
        """A body of exactly the limit is accepted, and one a byte larger is dead-lettered."""
        fits = body(planned("e-1"))
        is_larger = body(planned("e-2")).ljust(len(fits) + 1)
        worker = await start_worker(max_message_bytes=len(fits))
        await worker.wait_for_log("connected")

        await queues.publish([is_larger, fits])
        await worker.wait_until_settled(2)

        (letter,) = await queues.take_dead_letters()
        assert letter.body == is_larger
        assert letter.headers["x-reason"] == "too_large"
        assert [row[0] for row in rows(database)] == ["e-1"]
