import signal
from pathlib import Path

import pytest

from tests.builders import planned
from tests.database import rows
from tests.oracle import expected_rows
from tests.processes import StartWorker, WorkerProcess
from tests.queues import Queues
from tests.waiting import patiently

# The promise: from the end of the first worker until the second one has projected something.
PROMISED_SECONDS = 5.0
NAMES = ("SIGKILL", "SIGTERM")


@pytest.fixture
async def first(start_worker: StartWorker) -> WorkerProcess:
    """Return a worker that consumes."""
    worker = await start_worker()
    await worker.wait_for_log("connected")
    return worker


class TestASecondWorkerOnTheFile:
    async def test_says_once_for_whom_it_waits(
        self, first: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """One line names the process that holds the file; the standby touches nothing."""
        second = await start_worker()

        line = await second.wait_for_log("standing_by")

        assert f"pid {first.pid} on" in line["reason"]
        # Long enough for it to check again, which it does twice a second.
        assert await second.outlives(1.5)
        assert len(second.said("standing_by")) == 1
        assert second.said("connected") == []

    async def test_is_one_also_under_another_name_of_it(
        self,
        queues: Queues,
        database: Path,
        first: WorkerProcess,
        start_worker: StartWorker,
        start_command: StartWorker,
    ) -> None:
        """A symbolic link to the file or its folder leads to the same lock."""
        (link := database.with_name("current.db")).symlink_to(database.name)
        (folder := database.with_name("data")).symlink_to(database.parent)
        for name in (link, folder / database.name):
            second = await start_worker(database=name)
            line = await second.wait_for_log("standing_by")
            rebuild = await start_command("rebuild", database=name)

            assert f"pid {first.pid} on" in line["reason"]
            assert await rebuild.exit_code() == 1
            assert f"pid {first.pid} on" in rebuild.output

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=NAMES)
    async def test_consumes_soon_after_the_end_of_the_first(
        self,
        queues: Queues,
        database: Path,
        first: WorkerProcess,
        start_worker: StartWorker,
        number: signal.Signals,
    ) -> None:
        """However the first worker ends, the second one projects within the promised time."""
        second = await start_worker()
        await second.wait_for_log("standing_by")

        first.send(number)
        await first.exit_code()
        async with patiently(PROMISED_SECONDS):
            await queues.publish([only := planned("e-1")])
            await second.wait_until_settled(1)

        assert rows(database) == expected_rows([only])
        assert second.said("taking_over")


class TestARebuildByHand:
    async def test_of_a_file_that_is_held_is_refused(
        self, first: WorkerProcess, start_command: StartWorker
    ) -> None:
        """The command names the holder of the file and changes nothing."""
        command = await start_command("rebuild")

        assert await command.exit_code() == 1
        assert f"pid {first.pid} on" in command.output
        assert "Hint: " in command.output
