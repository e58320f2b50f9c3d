import os
import shutil
from pathlib import Path

from tests.builders import Message, planned
from tests.database import count_log, query, rows
from tests.disk import Disk, StartOnDisk, fill
from tests.oracle import expected_rows
from tests.processes import WorkerProcess
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.waiting import eventually

FIRST = [planned(f"e-{number}") for number in range(20)]
# Each is nearly as large as a message may be; together they are larger than what is reserved.
LARGE = [planned(f"l-{number}", payload={"props": {"text": "x" * 900_000}}) for number in range(10)]
DISK = "size=32m"


async def full(queues: Queues, worker: WorkerProcess, seen: Path) -> None:
    """Let a worker project some messages, and then fill its disk."""
    await worker.wait_for_log("connected")
    await queues.publish(FIRST)
    await worker.wait_until_settled(len(FIRST))
    fill(seen / "filler")


def copied(seen: Path, copies: Path) -> Path:
    """Copy the database from the worker's disk, which no other process can open."""
    for name in ("projection.db", "projection.db-wal"):
        shutil.copy(seen / name, copies / name)
    return copies / "projection.db"


async def require_whole(
    queues: Queues, seen: Path, copies: Path, worker: WorkerProcess, messages: list[Message]
) -> None:
    """Wait until all messages are settled; check that none was lost, rejected or suspected."""
    await worker.wait_for_log("resumed")
    await eventually(lambda: count_log(copied(seen, copies)) == len(messages))
    assert (await queues.depth()).ready == 0
    assert rows(copies / "projection.db") == expected_rows(messages)
    assert query(copies / "projection.db", "PRAGMA integrity_check") == [("ok",)]
    assert worker.said("quarantined") == []
    assert await queues.take_dead_letters() == []


class TestAFullDisk:
    async def test_is_waited_for(
        self, queues: Queues, tmp_path: Path, start_on_disk: StartOnDisk
    ) -> None:
        """Without a free byte the batch is held; once there is room, it commits."""
        disk = Disk(tmp_path / "disk", DISK)
        worker = await start_on_disk(disk)
        await full(queues, worker, seen := disk.seen_by(worker))
        await queues.publish(LARGE)
        line = await worker.wait_for_log("holding")
        assert await worker.outlives(1)

        (seen / "filler").unlink()

        await require_whole(queues, seen, tmp_path, worker, [*FIRST, *LARGE])
        assert "SQLITE_FULL" in line["reason"]
        assert len(worker.said("holding")) == len(worker.said("connected")) == 1

    async def test_takes_no_delivery_while_the_batch_that_it_holds_does_not_fit(
        self, queues: Queues, node: RabbitMQNode, tmp_path: Path, start_on_disk: StartOnDisk
    ) -> None:
        """Another session would cost each message a delivery, and finally dead-letter it.

        A page fits, and so does a message of the usual size; only the failed batch proves anything.
        """
        disk = Disk(tmp_path / "disk", DISK)
        worker = await start_on_disk(disk)
        await full(queues, worker, seen := disk.seen_by(worker))
        await queues.publish(LARGE)
        await worker.wait_for_log("holding")
        # What the probe writes fits now, and the batch does not.
        os.truncate(seen / "filler", (seen / "filler").stat().st_size - 5_000_000)
        await node.ctl("close_all_connections", "by an operator")
        await worker.wait_for_log("connection_lost")
        assert await worker.outlives(3), worker.output
        assert len(worker.said("connected")) == 1

        (seen / "filler").unlink()

        await worker.wait_for_log("connected", times=2)
        await require_whole(queues, seen, tmp_path, worker, [*FIRST, *LARGE])

    async def test_is_found_out_before_anything_is_consumed(
        self, queues: Queues, tmp_path: Path, start_on_disk: StartOnDisk
    ) -> None:
        """A page may fit where the largest message does not: a restart costs no delivery."""
        await queues.declare()
        await queues.publish(LARGE[:1])

        worker = await start_on_disk(Disk(tmp_path / "disk", "size=1m"))

        line = await worker.wait_for_log("holding")
        assert await worker.outlives(1)
        assert "SQLITE_FULL" in line["reason"]
        assert worker.said("connected") == []
        assert count_log(tmp_path / "disk" / "projection.db") == 0
