"""What an orchestrator sees of each fault and of its end."""

import asyncio
from pathlib import Path

import pytest

from tests.builders import planned
from tests.database import locked
from tests.health import Ask, asked, asking, read, until_not_ready, until_ready
from tests.processes import StartWorker, WorkerProcess, environment, worker_process
from tests.proxy import Proxy
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.waiting import eventually


@pytest.fixture
async def worker(start_worker: StartWorker, proxy: Proxy) -> WorkerProcess:
    """Return a worker that consumes through a proxy."""
    await proxy.listen()
    running = await start_worker(amqp_url=proxy.url)
    await running.wait_for_log("connected")
    return running


@pytest.fixture
def ask(worker: WorkerProcess) -> Ask:
    """Return a function that asks the worker at a path."""
    return asking(worker)


class TestReadiness:
    async def test_ends_with_a_locked_database_and_comes_back(
        self, queues: Queues, database: Path, worker: WorkerProcess, ask: Ask
    ) -> None:
        """The reason names the lock, and the worker stays live."""
        await until_ready(ask)
        with locked(database):
            await queues.publish([planned("e-1")])
            assert "locked" in await until_not_ready(ask)

        await until_ready(ask)
        # The log line comes after the state that was asked for.
        await worker.wait_for_log("resumed")
        assert len(worker.said("holding")) == 1

    async def test_ends_with_the_broker_and_comes_back(
        self, node: RabbitMQNode, worker: WorkerProcess, ask: Ask
    ) -> None:
        """The worker is not ready from the first refused connection on."""
        await until_ready(ask)
        await node.stop()
        await until_not_ready(ask)
        await node.start()

        await until_ready(ask)
        # The log line comes after the state that was asked for.
        await worker.wait_for_log("connected", times=2)
        assert len(worker.said("connection_lost")) == 1

    async def test_ends_with_the_queue_and_comes_back(
        self,
        queues: Queues,
        node: RabbitMQNode,
        worker: WorkerProcess,
        ask: Ask,
        start_command: StartWorker,
    ) -> None:
        """The reason names what is missing."""
        await until_ready(ask)
        await node.ctl("delete_queue", queues.name)
        await worker.wait_for_log("connection_refused")
        assert queues.name in await until_not_ready(ask)
        await (await start_command("topology", "apply")).exit_code()

        await until_ready(ask)

    async def test_ends_with_the_dead_letter_queue_and_comes_back(
        self, queues: Queues, node: RabbitMQNode, ask: Ask, start_command: StartWorker
    ) -> None:
        """It is not ready before there is a dead letter to lose."""
        await until_ready(ask)
        await node.ctl("delete_queue", queues.dead_letters)
        assert queues.dead_letters in await until_not_ready(ask)
        await (await start_command("topology", "apply")).exit_code()

        await until_ready(ask)

    async def test_waits_for_dead_letters_that_an_alarm_blocks(
        self, queues: Queues, node: RabbitMQNode, start_worker: StartWorker
    ) -> None:
        """The worker settles what it can, and reports that it cannot settle the rest."""
        await queues.declare()
        await queues.publish([b"broken"])
        await node.ctl("set_vm_memory_high_watermark", "0.000001")
        try:
            worker = await start_worker()
            await worker.wait_for_log("blocked")
            assert "alarm" in await until_not_ready(asking(worker))
        finally:
            await node.ctl("set_vm_memory_high_watermark", "0.4")

        await until_ready(asking(worker))

    async def test_is_not_for_a_standby(
        self, worker: WorkerProcess, ask: Ask, start_worker: StartWorker
    ) -> None:
        """A standby is live, and says which process it waits for."""
        standby = await start_worker()
        await standby.wait_for_log("standing_by")
        (line,) = standby.said("health_served")

        is_ready, reason = await asyncio.to_thread(asked, line["url"] + "/readyz")
        lives, _ = await asyncio.to_thread(asked, line["url"] + "/livez")

        assert (is_ready, lives) == (False, True)
        assert f"pid {worker.pid}" in reason


class TestLiveness:
    async def test_ends_for_a_worker_that_hangs_between_two_sessions(
        self, queues: Queues, proxy: Proxy, tmp_path: Path
    ) -> None:
        """A restart would help, and the drain before it ends by its deadline."""
        await proxy.listen()
        settings = environment(
            **queues.settings | {"amqp_url": proxy.url},
            database=tmp_path / "projection.db",
            secrets_dir=tmp_path,
        )
        running = worker_process("run", settings=settings, folder=tmp_path, module="tests.stuck")
        async with running as worker:
            await worker.wait_for_log("connected")
            ask = asking(worker)
            await until_ready(ask)
            assert (await ask("/livez"))[0]
            proxy.cut()

            async def reason() -> str | None:
                is_live, reason = await ask("/livez")
                return None if is_live else reason

            assert "One step" in await eventually(reason)
            worker.terminate()

            assert await worker.exit_code() == 1
            assert worker.said("drain_timed_out")


class TestMetrics:
    async def test_count_the_settled_messages(self, queues: Queues, worker: WorkerProcess) -> None:
        """They count messages by outcome and dead letters by reason."""
        await queues.publish([only := planned("e-1"), only, b"broken"])
        await worker.wait_until_settled(3)
        (line,) = worker.said("health_served")

        text = await asyncio.to_thread(read, f"{line['url']}/metrics")

        assert 'projection_messages_total{outcome="applied"} 1.0' in text
        assert 'projection_messages_total{outcome="duplicate"} 1.0' in text
        assert 'projection_dead_letters_total{reason="not_json"} 1.0' in text
        assert 'projection_state{state="consuming"} 1.0' in text
