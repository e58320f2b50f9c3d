from pathlib import Path
from random import Random

import pytest

from tests.builders import planned, started
from tests.database import count_log, log, query, rows
from tests.histories import distinct, histories
from tests.oracle import expected_rows
from tests.processes import StartWorker, WorkerProcess
from tests.proxy import BASIC_ACK, Proxy
from tests.queues import Queues
from tests.waiting import eventually

SEED = 20_261_123
KILLS = 12
# Longer than a worker needs to commit and ack a batch: the moment falls anywhere in between.
MOMENT_SECONDS = 0.02


async def until_log_has(database: Path, messages: int) -> None:
    """Wait until this many messages are committed, and hardly a moment longer."""
    await eventually(lambda: count_log(database) >= messages)


async def kill_soon(worker: WorkerProcess, rng: Random) -> None:
    """Kill the worker at a random moment from now on."""
    await worker.outlives(rng.uniform(0, MOMENT_SECONDS))
    await worker.kill()


class TestAKill:
    async def test_at_any_moment_loses_and_repeats_nothing(
        self,
        queues: Queues,
        database: Path,
        start_worker: StartWorker,
        start_command: StartWorker,
    ) -> None:
        """After a dozen kills, the rows, the log and the queue are as if there had been none."""
        rng = Random(SEED)
        published = histories(rng, events=800)
        messages = distinct(published)
        await queues.declare()
        await queues.publish(published)

        for number in range(1, KILLS + 1):
            worker = await start_worker(batch_size=10, prefetch=100)
            await until_log_has(database, len(messages) * number // (KILLS + 2))
            await kill_soon(worker, rng)
        left = await queues.left()
        last = await start_worker()
        await last.wait_until_settled(left)

        assert left > 0
        assert rows(database) == expected_rows(published)
        assert log(database) == messages
        assert (await queues.depth()).ready == 0
        assert await queues.take_dead_letters() == []
        assert query(database, "PRAGMA integrity_check") == [("ok",)]
        assert await (await start_command("rebuild", "--verify")).exit_code() == 0

    async def test_at_its_start_leaves_a_file_that_the_next_one_can_use(
        self, queues: Queues, database: Path, start_worker: StartWorker
    ) -> None:
        """The next start completes the tables, wherever their creation was interrupted."""
        rng = Random(SEED)
        await queues.declare()
        await queues.publish([only := planned("e-1")])

        for _ in range(6):
            worker = await start_worker()
            await worker.wait_for_log("starting")
            await kill_soon(worker, rng)
        await start_worker()
        await until_log_has(database, 1)

        assert rows(database) == expected_rows([only])


@pytest.fixture
async def unacking(proxy: Proxy, start_worker: StartWorker) -> WorkerProcess:
    """Return a worker that consumes and whose acks all get lost."""
    await proxy.listen()
    proxy.swallows = BASIC_ACK
    worker = await start_worker(amqp_url=proxy.url, batch_size=7)
    await worker.wait_for_log("connected")
    return worker


class TestBetweenCommitAndAck:
    async def test_a_kill_brings_every_message_again_as_a_duplicate(
        self,
        queues: Queues,
        database: Path,
        proxy: Proxy,
        unacking: WorkerProcess,
        start_worker: StartWorker,
    ) -> None:
        """The next worker finds all of them in the log, and changes nothing."""
        published = [make(f"e-{n}") for n in range(20) for make in (planned, started)]
        await queues.publish(published)
        await until_log_has(database, 40)
        await eventually(lambda: proxy.swallowed)
        await unacking.kill()
        before = rows(database)
        assert await queues.left() == 40

        worker = await start_worker()
        await worker.wait_until_settled(40)

        assert worker.total("duplicate") == 40
        assert rows(database) == before == expected_rows(published)
        assert (await queues.depth()).ready == 0

    async def test_a_cut_brings_every_message_again_as_a_duplicate(
        self, queues: Queues, database: Path, proxy: Proxy, unacking: WorkerProcess
    ) -> None:
        """The same worker finds all of them in its log in the next session."""
        published = [make(f"e-{n}") for n in range(20) for make in (planned, started)]
        await queues.publish(published)
        await unacking.wait_until_settled(40)

        proxy.swallows = None
        proxy.cut()
        await unacking.wait_until_settled(80)

        assert unacking.total("applied") == unacking.total("duplicate") == 40
        assert rows(database) == expected_rows(published)
        assert (await queues.depth()).ready == 0
        assert len(unacking.said("connection_lost")) == 1
