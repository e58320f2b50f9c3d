import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import completed, planned, started
from tests.database import change, query, rows
from tests.disk import Disk, StartOnDisk
from tests.oracle import expected_rows
from tests.processes import StartWorker, WorkerProcess
from tests.queues import Queues
from tests.store.test_faults import root_of, spoil_page
from tests.strace import SYNC, calls, require_strace, threads, traced

FIRST = [planned(f"e-{number}") for number in range(20)]
MESSAGES = [make(f"e-{number}") for number in range(20) for make in (started, completed)]


@pytest.fixture
async def worker(start_worker: StartWorker, queues: Queues) -> WorkerProcess:
    """Return a worker that has projected some messages."""
    running = await start_worker()
    await running.wait_for_log("connected")
    await queues.publish(FIRST)
    await running.wait_until_settled(len(FIRST))
    return running


async def require_whole(queues: Queues, database: Path, worker: WorkerProcess) -> None:
    """Wait until all messages are settled, and check that none was lost or rejected.

    A commit whose sync failed may still be in the file: its messages come as duplicates.
    """
    every = [*FIRST, *MESSAGES]
    await worker.wait_until_settled(len(every))
    assert rows(database) == expected_rows(every)
    assert worker.total("applied") + worker.total("duplicate") == worker.settled == len(every)
    assert len(worker.said("holding")) == len(worker.said("resumed")) == 1
    assert len(worker.said("connected")) == 1
    assert (await queues.depth()).ready == 0
    assert await queues.take_dead_letters() == []
    assert query(database, "PRAGMA integrity_check") == [("ok",)]


class TestADiskThatFails:
    @pytest.mark.parametrize("fault", [f"{SYNC}:error=EIO:when=1", "pwrite64:error=EIO:when=1+"])
    async def test_is_asked_again_through_a_reopened_file(
        self, queues: Queues, database: Path, tmp_path: Path, worker: WorkerProcess, fault: str
    ) -> None:
        """The thread that met the error never writes again; the batch that was held commits."""
        require_strace()
        with traced(threads(worker.pid), tmp_path / "calls", fault):
            await queues.publish(MESSAGES)
            await worker.wait_for_log("resumed")

        await require_whole(queues, database, worker)
        assert "INJECTED" in (tmp_path / "calls").read_text()
        assert "SQLITE_IOERR" in worker.said("holding")[0]["reason"]

    async def test_for_long_gets_no_ack_until_it_works(
        self, queues: Queues, database: Path, tmp_path: Path, worker: WorkerProcess
    ) -> None:
        """While no sync succeeds, the broker gets no ack; then the same batch commits."""
        require_strace()
        fault = f"{SYNC}:error=EIO:when=1+"
        with traced([worker.pid], tmp_path / "calls", fault, follow=True):
            await queues.publish(MESSAGES)
            await worker.wait_for_log("holding")
            assert await worker.outlives(2)
        said = calls(tmp_path / "calls")

        await require_whole(queues, database, worker)
        assert "failure" in said
        assert "ack" not in said
        assert worker.said("resumed")[0]["attempts"] > 1

    async def test_and_a_process_that_may_open_no_more_files(
        self, queues: Queues, database: Path, tmp_path: Path, worker: WorkerProcess
    ) -> None:
        """A second fault during the recovery from the first is held until both are gone."""
        require_strace()
        usual = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (3, usual[1]))
        with traced(threads(worker.pid), tmp_path / "calls", f"{SYNC}:error=EIO:when=1"):
            await queues.publish(MESSAGES)
            await worker.wait_for_log("holding")
            assert await worker.outlives(1)
            assert worker.said("resumed") == []
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, usual)

        await require_whole(queues, database, worker)


class TestAnAck:
    async def test_is_sent_only_when_the_batch_is_on_the_disk(
        self, queues: Queues, database: Path, tmp_path: Path, start_worker: StartWorker
    ) -> None:
        """The ack is sent only after the kernel has confirmed the write and the sync."""
        require_strace()
        worker = await start_worker(batch_size=5)
        await worker.wait_for_log("connected")
        with traced([worker.pid], tmp_path / "calls", follow=True):
            await queues.publish([*FIRST, *MESSAGES])
            await worker.wait_until_settled(len(FIRST) + len(MESSAGES))
        said = calls(tmp_path / "calls")

        synced = True
        for call in said:
            assert call != "ack" or synced, said
            synced = call != "write" if call != "ack" else synced
        assert "failure" not in said
        assert said.count("sync") >= len(worker.said("batch_committed")) >= 12
        assert said.count("ack") >= 12


class TestAFileThatIsDamagedWhileItIsOpen:
    async def test_stops_the_worker(
        self, queues: Queues, database: Path, worker: WorkerProcess
    ) -> None:
        """It exits and acks nothing: waiting repairs no file, and no message is at fault."""
        # A commit by another connection makes SQLite drop its cached pages.
        change(database, "PRAGMA wal_checkpoint(TRUNCATE)")
        change(database, "PRAGMA user_version = 1")
        spoil_page(database, root_of(database, "log"))
        await queues.publish(MESSAGES)

        assert await worker.exit_code() == 1

        assert await queues.left() == len(MESSAGES)
        (line,) = worker.said("failed")
        assert f"is damaged (path {database}" in line["reason"]
        assert ".recover" in line["hint"]
        assert await queues.take_dead_letters() == []

    async def test_is_refused_by_the_next_one(
        self, queues: Queues, database: Path, worker: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """It ends before it consumes, however often it is restarted."""
        worker.terminate()
        assert await worker.exit_code() == 0
        spoil_page(database, root_of(database, "log"))
        await queues.publish(MESSAGES)

        for _ in range(2):
            following = await start_worker()
            assert await following.exit_code() == 1
            assert "is damaged" in following.said("failed")[0]["reason"]
            assert following.said("connected") == []
        assert await queues.left() == len(MESSAGES)


def delete(database: Path) -> None:
    database.unlink()


def move(database: Path) -> None:
    database.rename(database.with_name("moved.db"))


class TestAFileThatIsTakenAwayWhileItIsOpen:
    @pytest.mark.parametrize("take", [delete, move])
    async def test_stops_the_worker(
        self, queues: Queues, database: Path, worker: WorkerProcess, take: Callable[[Path], None]
    ) -> None:
        """Commits to a file without a name would be lost when the worker ends."""
        take(database)
        await queues.publish(MESSAGES)

        assert await worker.exit_code() == 1

        assert await queues.left() == len(MESSAGES)
        assert "deleted, moved or replaced" in worker.said("failed")[0]["reason"]

    async def test_brings_it_all_back_if_it_is_brought_back(
        self, queues: Queues, database: Path, worker: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """This works as the hint says: the file goes back beside the WAL that was left."""
        move(database)
        await queues.publish(MESSAGES)
        await worker.exit_code()
        database.with_name("moved.db").rename(database)

        following = await start_worker()
        await following.wait_until_settled(len(MESSAGES))

        assert rows(database) == expected_rows([*FIRST, *MESSAGES])


class TestADiskThatMayOnlyBeRead:
    async def test_is_refused_before_anything_is_consumed(
        self, queues: Queues, tmp_path: Path, start_on_disk: StartOnDisk
    ) -> None:
        """The worker says which file it cannot create and why, and ends."""
        await queues.declare()
        await queues.publish(FIRST)

        worker = await start_on_disk(Disk(tmp_path / "disk", "ro"))

        assert await worker.exit_code() == 1
        (line,) = worker.said("failed")
        assert str(tmp_path / "disk") in line["reason"]
        assert "Read-only file system" in line["reason"]
        assert worker.said("connected") == []
        assert await queues.left() == len(FIRST)
