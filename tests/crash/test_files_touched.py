import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.builders import completed, planned, started
from tests.database import change, rows
from tests.oracle import expected_rows
from tests.processes import StartWorker, WorkerProcess
from tests.queues import Queues

FIRST = [planned(f"e-{number}") for number in range(20)]
SECOND = [started(f"e-{number}") for number in range(20)]
THIRD = [completed(f"e-{number}") for number in range(20)]


@pytest.fixture
async def worker(start_worker: StartWorker, queues: Queues) -> WorkerProcess:
    """Return a worker that has projected the first messages."""
    running = await start_worker()
    await running.wait_for_log("connected")
    await queues.publish(FIRST)
    await running.wait_until_settled(len(FIRST))
    return running


def beside(database: Path, suffix: str) -> Path:
    return database.with_name(database.name + suffix)


def backed_up(database: Path) -> Path:
    """Copy the database while the worker runs, as the documentation says."""
    copy = database.with_name("backup.db")
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def restore(copy: Path, database: Path) -> None:
    """Follow the steps of docs/upgrade.md."""
    for suffix in ("-wal", "-shm", ".lock"):
        beside(database, suffix).unlink(missing_ok=True)
    shutil.copyfile(copy, database)


class TestABackupCopiedOverARunningWorker:
    async def test_ends_it_before_it_acks_into_the_mixture(
        self, queues: Queues, database: Path, worker: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """The next start is refused, too, until the backup has been restored as documented."""
        copy = backed_up(database)
        await queues.publish(SECOND)
        await worker.wait_until_settled(len(FIRST) + len(SECOND))
        # The worker does this by itself from time to time; the test forces it.
        change(database, "PRAGMA wal_checkpoint(TRUNCATE)")
        await queues.publish(SECOND[:1])
        await worker.wait_until_settled(len(FIRST) + len(SECOND) + 1)

        shutil.copyfile(copy, database)
        await queues.publish(THIRD)

        assert await worker.exit_code() == 1
        assert "was overwritten" in worker.said("failed")[0]["reason"]
        assert await queues.left() == len(THIRD)
        following = await start_worker()
        assert await following.exit_code() == 1
        assert following.said("connected") == []

        restore(copy, database)
        last = await start_worker()
        await last.wait_until_settled(len(THIRD))
        assert rows(database) == expected_rows([*FIRST, *THIRD])


class TestAWALThatIsRemoved:
    async def test_under_a_running_worker_costs_nothing(
        self, queues: Queues, database: Path, worker: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """SQLite still has it open, and copies its contents into the database at the end."""
        beside(database, "-wal").unlink()
        await queues.publish(SECOND)

        assert await worker.exit_code() == 1
        assert "-wal" in worker.said("failed")[0]["reason"]
        following = await start_worker()
        await following.wait_until_settled(len(SECOND))
        assert rows(database) == expected_rows([*FIRST, *SECOND])

    async def test_with_what_was_acked_is_told_at_the_next_start(
        self, database: Path, worker: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """A kill left the last commits only in the WAL; to SQLite they never happened."""
        await worker.kill()
        beside(database, "-wal").unlink()

        following = await start_worker()

        assert await following.exit_code() == 1
        assert "has lost what was acked" in following.said("failed")[0]["reason"]
        assert following.said("connected") == []


class TestALockFileThatIsRemoved:
    async def test_ends_the_worker_that_had_it(
        self, queues: Queues, database: Path, worker: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """Another worker may have locked a new file; that one goes on."""
        beside(database, ".lock").unlink()
        second = await start_worker()
        await queues.publish([*SECOND, *THIRD])

        assert await worker.exit_code() == 1
        assert ".lock" in worker.said("failed")[0]["reason"]
        await second.wait_until_settled(len(SECOND) + len(THIRD))
        assert rows(database) == expected_rows([*FIRST, *SECOND, *THIRD])
