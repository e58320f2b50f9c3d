"""Users of another group who read the files of the worker and may write nothing."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.builders import Message, planned
from tests.processes import environment
from tests.unit.projecting import arrivals, project, projecting

# Ids that belong to no account on the machine.
READER, READERS = 61_001, 61_002


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """Return a folder that is set up as documented for readers of another group."""
    with TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        (folder := Path(place) / "data").mkdir()
        os.chown(folder, -1, READERS)
        folder.chmod(0o2750)
        yield folder


async def stop_once(database: Path, *messages: Message) -> None:
    """Project into a new file, stop, and let its group read it."""
    await project(database, messages)
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).chmod(0o640)


def list_as_reader(database: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["setpriv", f"--reuid={READER}", f"--regid={READERS}", "--clear-groups",
         sys.executable, "-m", "worker", "list", "chat-1"],
        env=environment(database=database), cwd=database.parent,
        check=False, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read as another user")
class TestAReaderOfAnotherGroup:
    async def test_reads_whether_or_not_the_worker_runs(self, shared_folder: Path) -> None:
        """The reader may write neither the files nor the folder."""
        database = shared_folder / "p.db"
        await stop_once(database, planned("e-1"))
        stopped = await asyncio.to_thread(list_as_reader, database)
        async with projecting(database) as projector:
            await projector.project(arrivals([planned("e-2")]))
            running = await asyncio.to_thread(list_as_reader, database)
        stopped_again = await asyncio.to_thread(list_as_reader, database)

        assert [each.stderr for each in (stopped, running, stopped_again)] == ["", "", ""]
        assert "e-1" in stopped.stdout
        assert "e-2" in running.stdout
        assert "e-2" in stopped_again.stdout

    async def test_is_told_which_files_it_needs(self, shared_folder: Path) -> None:
        """The error comes when they are missing, or when their mode was not changed."""
        database, wal = shared_folder / "p.db", shared_folder / "p.db-wal"
        await stop_once(database, planned("e-1"))
        wal.chmod(0o600)
        forgotten = await asyncio.to_thread(list_as_reader, database)
        for suffix in ("-wal", "-shm"):
            (shared_folder / f"p.db{suffix}").unlink()
        missing = await asyncio.to_thread(list_as_reader, database)

        for refused in (forgotten, missing):
            assert refused.returncode == 1
            assert "-wal and -shm" in refused.stderr
            assert "Traceback" not in refused.stderr
