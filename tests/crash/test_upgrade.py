from pathlib import Path

import pytest

from tests.builders import Message, completed, planned, started
from tests.database import change, query, rows
from tests.oracle import expected_rows
from tests.processes import StartWorker
from tests.queues import Queues


@pytest.fixture
async def projected(queues: Queues, database: Path, start_worker: StartWorker) -> list[Message]:
    """Leave a file behind as a stopped worker does; return what it projected."""
    messages = [planned("e-1"), completed("e-1"), planned("e-2"), started("e-2")]
    await queues.declare()
    await queues.publish(messages)
    worker = await start_worker()
    await worker.wait_until_settled(len(messages))
    worker.terminate()
    assert await worker.exit_code() == 0
    return messages


class TestAFileWithoutItsLog:
    @pytest.mark.parametrize("version", [2, 77])
    async def test_is_not_taken_for_a_new_one(
        self,
        queues: Queues,
        database: Path,
        projected: list[Message],
        start_worker: StartWorker,
        version: int,
    ) -> None:
        """Its rows stay, nothing is consumed, and a line says what happened and what to do."""
        change(database, "DELETE FROM log")
        change(database, f"UPDATE projections SET version = {version}")
        await queues.publish([planned("e-3")])

        worker = await start_worker()

        assert await worker.exit_code() == 1
        (line,) = worker.said("failed")
        assert "The log is empty, but the table events has rows" in line["reason"]
        assert "restore a backup" in line["hint"]
        assert rows(database) == expected_rows(projected)
        assert await queues.left() == 1


class TestAFileOfAnotherVersion:
    async def test_of_the_projection_is_rebuilt_before_it_is_used(
        self,
        queues: Queues,
        database: Path,
        projected: list[Message],
        start_worker: StartWorker,
    ) -> None:
        """Rows that another version folded are folded again, and a line says why."""
        change(database, "UPDATE projections SET version = 77")
        change(database, "UPDATE events SET status = 'planned'")

        worker = await start_worker()
        await worker.wait_for_log("connected")

        events = [line["event"] for line in worker.lines]
        assert events == ["starting", "health_served", "rebuilding", "rebuilt", "connected"]
        assert "version 77" in worker.said("rebuilding")[0]["reason"]
        assert worker.said("rebuilt", messages=4, rows=2, differing=2)
        assert rows(database) == expected_rows(projected)

    async def test_of_the_projection_is_rebuilt_once(
        self, database: Path, projected: list[Message], start_worker: StartWorker
    ) -> None:
        """The next start finds the file up to date."""
        change(database, "UPDATE projections SET version = 77")
        first = await start_worker()
        await first.wait_for_log("rebuilt")
        await first.kill()

        second = await start_worker()
        await second.wait_for_log("connected")

        assert second.said("rebuilding") == []
        assert rows(database) == expected_rows(projected)

    async def test_of_a_newer_schema_is_refused(
        self, database: Path, projected: list[Message], start_worker: StartWorker
    ) -> None:
        """Only the newer worker knows what it means, so the file is left alone."""
        change(database, "PRAGMA user_version = 99")

        worker = await start_worker()

        assert await worker.exit_code() == 1
        (line,) = worker.said("failed")
        assert "schema 99" in line["reason"]
        assert line["hint"]
        assert query(database, "PRAGMA user_version") == [(99,)]
        assert rows(database) == expected_rows(projected)


class TestAFileWithMessagesThatOnlyANewerReleaseKnows:
    async def test_is_refused_before_anything_is_consumed(
        self, queues: Queues, database: Path, projected: list[Message], start_worker: StartWorker
    ) -> None:
        """A late message of such a stream would be dead-lettered, and a rebuild would fail."""
        change(database, "INSERT INTO kinds VALUES ('event_postponed')")
        await queues.publish([started("e-2")])

        worker = await start_worker()

        assert await worker.exit_code() == 1
        (line,) = worker.said("failed")
        assert "event_postponed" in line["reason"]
        assert "roll back" in line["hint"]
        assert worker.said("connected") == []
        assert await queues.left() == 1

    async def test_is_not_rebuilt_by_a_release_that_does_not_know_them(
        self, database: Path, projected: list[Message], start_command: StartWorker
    ) -> None:
        """Neither a rebuild nor a comparison runs; nothing is changed."""
        change(database, "INSERT INTO kinds VALUES ('event_postponed')")

        for options in ([], ["--verify"]):
            rebuild = await start_command("rebuild", *options)

            assert await rebuild.exit_code() == 1
            assert "event_postponed" in rebuild.output
        assert rows(database) == expected_rows(projected)

    async def test_gets_them_noted_in_the_transaction_that_appends_them(
        self, database: Path, projected: list[Message]
    ) -> None:
        """The file notes every kind in the log, and no other."""
        noted = query(database, "SELECT kind FROM kinds ORDER BY kind")

        assert noted == query(database, "SELECT DISTINCT kind FROM log ORDER BY kind")
        assert len(noted) == 3
