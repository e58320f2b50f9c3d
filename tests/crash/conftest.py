from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.disk import Disk, StartOnDisk, cannot_mount
from tests.processes import WorkerProcess, environment, worker_process
from tests.queues import Queues


@pytest.fixture
async def start_on_disk(queues: Queues, tmp_path: Path) -> AsyncIterator[StartOnDisk]:
    """Return a function that starts a worker on a separate disk."""
    if reason := cannot_mount():
        pytest.skip(reason)
    async with AsyncExitStack() as stack:

        async def start(disk: Disk) -> WorkerProcess:
            settings = environment(**queues.settings, database=disk.database, secrets_dir=tmp_path)
            return await stack.enter_async_context(
                worker_process("run", settings=settings, folder=tmp_path, inside=disk.inside)
            )

        yield start
