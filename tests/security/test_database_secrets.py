"""The password of a database on a server must not appear in anything that the worker writes."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders import planned
from tests.cli.commands import run_command
from tests.health import read
from tests.postgres import PostgresDatabase
from tests.processes import StartWorker
from tests.queues import Queues
from tests.security.password import CANARY
from tests.unit.projecting import project

PARTITIONS = 2


@pytest.fixture
async def partitioned(queues: Queues) -> AsyncIterator[Queues]:
    """Delete the partitions of a worker that uses the names of the test's queues."""
    yield queues
    others = Queues(queues.url, PARTITIONS)
    others.exchange, others.name = queues.exchange, queues.name
    await others.delete()


class TestTheDatabasesPassword:
    async def test_is_renewed_without_a_restart(
        self,
        partitioned: Queues,
        postgres_database: PostgresDatabase,
        tmp_path: Path,
        start_worker: StartWorker,
    ) -> None:
        """It is read from its file at each connection, and is in nothing that the worker writes."""
        name, url = postgres_database.name, postgres_database.url
        secret = tmp_path / "worker_database"
        secret.write_text(url)
        worker = await start_worker(database=None, partitions=PARTITIONS)
        await worker.wait_for_log("connected")

        await postgres_database.query(f"ALTER ROLE {name} PASSWORD '{CANARY}'")
        await postgres_database.node.terminate_backends("projection-worker%")
        await partitioned.publish([planned("e-1")])
        held = await worker.wait_for_log("holding")
        secret.write_text(url.replace(postgres_database.password, CANARY))
        await worker.wait_until_settled(1)
        (line,) = worker.said("health_served")
        served = [read(f"{line['url']}/{path}") for path in ("metrics", "readyz")]

        assert "password authentication failed" in held["reason"]
        for password in (CANARY, postgres_database.password):
            assert password not in "".join([worker.output, *served])

    @pytest.mark.parametrize("flaw", ["refused", "misspelt"])
    @pytest.mark.parametrize(
        "command",
        [
            ["check"],
            ["show", "e-1"],
            ["topology", "show"],
            ["rebuild", "--verify"],
            ["import-log", "source.db"],
        ],
        ids=" ".join,
    )
    async def test_is_in_nothing_that_a_command_prints(
        self,
        queues: Queues,
        postgres_database: PostgresDatabase,
        tmp_path: Path,
        command: list[str],
        flaw: str,
    ) -> None:
        """Whether the server refuses it, or the URL is wrong."""
        await project(tmp_path / "source.db", [planned("e-1")])
        right = f":{postgres_database.password}@"
        url = postgres_database.url.replace(right, f":{CANARY}@")
        if flaw == "misspelt":
            url = postgres_database.url.replace(right, f":{CANARY}/{CANARY}@")
        settings: dict[str, Any] = {**queues.settings, "database": url, "secrets_dir": tmp_path}

        code, out, err = await run_command(*command, folder=tmp_path, **settings)

        assert code == (2 if flaw == "misspelt" else 1)
        assert CANARY not in out + err
