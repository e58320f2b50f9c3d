from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.processes import StartWorker, WorkerProcess
from tests.queues import Queues


@dataclass
class Place:
    """The names and the database file that one test uses."""

    queues: Queues
    database: Path
    folder: Path
    start_worker: StartWorker

    @property
    def settings(self) -> dict[str, Any]:
        """The settings for commands."""
        return {**self.queues.settings, "database": self.database}

    async def consuming(self, **settings: object) -> WorkerProcess:
        """Start a worker and wait until it consumes; it is killed at the end of the test."""
        worker = await self.start_worker(**settings)
        await worker.wait_for_log("connected")
        return worker


@pytest.fixture
def place(queues: Queues, database: Path, tmp_path: Path, start_worker: StartWorker) -> Place:
    """Return names and a file that no other test uses."""
    return Place(queues, database, tmp_path, start_worker)
