import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.builders import completed, planned, started
from tests.database import rows
from tests.health import asking
from tests.oracle import expected_rows
from tests.processes import StartWorker, WorkerProcess, environment, worker_process
from tests.proxy import Proxy
from tests.queues import Queues
from tests.waiting import eventually
from worker.settings import Settings

LIVES = [build(f"e-{n}") for n in range(300) for build in (planned, started, completed)]


@pytest.fixture
async def broken_worker(
    queues: Queues, proxy: Proxy, database: Path, tmp_path: Path
) -> AsyncIterator[WorkerProcess]:
    """Return a worker whose handler of event_started always fails, on a queue with messages."""
    await proxy.listen()
    await queues.declare()
    await queues.publish(LIVES)
    async with AsyncExitStack() as stack:
        there = queues.settings | {"amqp_url": proxy.url}
        settings = environment(**there, database=database, secrets_dir=tmp_path)
        yield await stack.enter_async_context(
            worker_process("run", settings=settings, folder=tmp_path, module="tests.broken")
        )


class TestABadDeployment:
    async def test_is_held_until_a_release_that_can_apply_the_messages(
        self,
        queues: Queues,
        database: Path,
        broken_worker: WorkerProcess,
        start_worker: StartWorker,
    ) -> None:
        """The worker says so, is live but not ready, and makes only a few dead letters."""
        line = await broken_worker.wait_for_log("breaker_opened")
        is_alive, _ = await asking(broken_worker)("/livez")
        is_ready, reason = await asking(broken_worker)("/readyz")
        broken_worker.terminate()
        assert await broken_worker.exit_code() == 0

        await start_worker()
        letters = [json.loads(each.body) for each in await queues.take_dead_letters()]
        left = [each for each in LIVES if each not in letters]
        await eventually(lambda: rows(database) == expected_rows(left))

        assert "'event_started'" in line["reason"]
        assert "a bad deployment" in line["reason"]
        assert (is_alive, is_ready) == (True, False)
        assert line["reason"] in reason
        assert len(broken_worker.said("breaker_opened")) == 1
        assert {each["kind"] for each in letters} <= {"event_started"}
        assert len(letters) < Settings.model_fields["breaker_failures"].default
        assert await queues.take_dead_letters() == []

    async def test_costs_no_deliveries(
        self, queues: Queues, proxy: Proxy, broken_worker: WorkerProcess
    ) -> None:
        """After a lost session, none is opened before the batch can be settled."""
        await broken_worker.wait_for_log("breaker_opened")
        sessions = proxy.connections
        proxy.cut()
        await broken_worker.wait_for_log("connection_lost")
        tried_before = len(broken_worker.said("still_holding"))

        await broken_worker.wait_for_log("still_holding", tried_before + 1)

        assert proxy.connections == sessions
        assert (await queues.depth()).consumers == 0
