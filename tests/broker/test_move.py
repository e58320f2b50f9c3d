"""A reader moves from a file to PostgreSQL, and back, while messages are published."""

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.builders import Message
from tests.cli.commands import run_command
from tests.database import count_log
from tests.histories import distinct, histories
from tests.oracle import COLUMNS, expected_rows
from tests.places import Place
from tests.postgres import PostgresDatabase
from tests.processes import StartWorker, WorkerProcess
from tests.queues import Queues
from tests.unit.projecting import LOG, rows
from tests.waiting import eventually
from worker.store.postgres.address import Address

PARTITIONS = 3
COUNT = "SELECT count(*) FROM log"
EVENTS = f"SELECT {', '.join(COLUMNS)} FROM events ORDER BY event_id"


class Move:
    """What both directions have in common: messages, workers, and commands with settings."""

    def __init__(self, queues: Queues, folder: Path, start_worker: StartWorker) -> None:
        self.published: list[Message] = []
        self.before_the_last = 0
        """How many messages there were before the last piece."""
        self._queues = queues
        self._folder = folder
        self._rng = Random(11)
        self.start_worker = start_worker

    async def start(self, database: object) -> WorkerProcess:
        """Start a worker, and return it when it is connected."""
        worker = await self.start_worker(database=database, partitions=PARTITIONS)
        await worker.wait_for_log("connected")
        return worker

    async def fall_behind(self, database: object, place: Place) -> None:
        """Stop the worker after a piece, so that the next piece waits in the old queue alone."""
        worker = await self.start(database)
        await self.publish()
        await self.until_all_are_in(place)
        await ended(worker)
        await self.publish()

    async def publish(self) -> None:
        """Publish a piece of a tale, each time with other events."""
        name = f"e{len(self.published)}"
        self.before_the_last = len(distinct(self.published))
        messages = histories(self._rng, events=25, name=name)
        await self._queues.publish(messages)
        self.published += messages

    async def run(self, *command: str, database: object) -> tuple[int, str, str]:
        """Run a command with the settings of one database."""
        settings: dict[str, Any] = {
            **self._queues.settings, "database": database, "partitions": PARTITIONS,
            "secrets_dir": self._folder,
        }  # fmt: skip
        return await run_command(*command, folder=self._folder, **settings)

    async def succeed(self, *command: str, database: object) -> str:
        """Run a command that must succeed, and return its output."""
        code, out, err = await self.run(*command, database=database)
        assert code == 0, out + err
        return out

    async def until_all_are_in(self, place: Place) -> None:
        """Wait until a log has all that was published."""
        wanted = len(distinct(self.published))

        def count() -> bool:
            if isinstance(place, Path):
                return count_log(place) == wanted
            return rows(place, COUNT) == [(wanted,)]

        await eventually(count)

    def require_all(self, place: Place) -> None:
        """Compare log and rows with what was published."""
        assert rows(place, LOG) == distinct(self.published)
        assert rows(place, EVENTS) == expected_rows(self.published)


async def ended(worker: WorkerProcess) -> None:
    """Stop a worker, which drains."""
    worker.terminate()
    assert await worker.exit_code() == 0


@pytest.fixture
async def move(
    queues: Queues, broker_url: str, tmp_path: Path, start_worker: StartWorker
) -> AsyncIterator[Move]:
    yield Move(queues, tmp_path, start_worker)
    partitioned = Queues(broker_url, PARTITIONS)
    partitioned.exchange, partitioned.name = queues.exchange, queues.name
    await partitioned.delete()


class TestAMove:
    async def test_up_loses_nothing(
        self, move: Move, database: Path, database_url: str, queues: Queues
    ) -> None:
        """From a file to PostgreSQL: publishers go on, and the old log is imported twice."""
        server = Address(database_url)
        await move.fall_behind(database, database)

        await move.succeed("topology", "apply", database=database_url)
        await move.publish()
        await move.start(database_url)
        await move.publish()
        await move.succeed("import-log", str(database), database=database_url)
        old = await move.start(database)
        code, _, busy = await move.run("topology", "retire", "--yes", database=database_url)
        await move.publish()
        await queues.until(lambda depth: depth.ready == 0)
        await ended(old)
        said = await move.succeed("import-log", str(database), database=database_url)
        await move.succeed("topology", "retire", "--yes", database=database_url)
        await move.publish()
        await move.until_all_are_in(server)
        again = await move.succeed("topology", "retire", database=database_url)

        assert code == 1
        assert "must go before the deletion" in busy
        assert "0 rejected" in said
        assert ": 0 added" not in said
        assert "There is nothing to retire." in again
        move.require_all(server)

    async def test_back_loses_nothing(
        self,
        move: Move,
        database: Path,
        postgres_database: PostgresDatabase,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """From PostgreSQL to a file, whose own worker stops for the second import."""
        url, password = postgres_database.url, postgres_database.password
        source = url.replace(f":{password}@", "@")
        monkeypatch.setenv("PGPASSWORD", password)
        await move.fall_behind(url, Address(url))

        await move.succeed("topology", "apply", database=database)
        await move.publish()
        await move.succeed("import-log", source, database=database)
        new = await move.start(database)
        old = await move.start(url)
        await move.publish()
        code, _, busy = await move.run("topology", "retire", "--yes", database=database)
        await move.publish()
        # All but the last piece, which only the new queue got.
        await eventually(lambda: rows(Address(url), COUNT) >= [(move.before_the_last,)])
        await ended(old)
        await ended(new)
        said = await move.succeed("import-log", source, database=database)
        await move.succeed("topology", "retire", "--yes", database=database)
        await move.start(database)
        await move.publish()
        await move.until_all_are_in(database)

        assert code == 1
        assert "must go before the deletion" in busy
        assert "0 rejected" in said
        assert ": 0 added" not in said
        move.require_all(database)
