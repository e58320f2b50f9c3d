"""Faults that must not leave a worker running that does only half of its work."""

import asyncio
import fcntl
import os
import sqlite3
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.builders import planned
from tests.database import rows
from tests.oracle import Row, expected_rows
from tests.processes import environment, worker_process
from tests.queues import Queues
from tests.waiting import eventually

MESSAGES = [planned(f"e-{number}") for number in range(600)]
RUN = (sys.executable, "-m", "worker", "run")
# The least that Linux gives a pipe.
PIPE_BYTES = 4_096


def rows_or_none(database: Path) -> list[Row] | None:
    """Return the rows, or None until there is a file with the table."""
    try:
        return rows(database)
    except sqlite3.OperationalError:
        return None


class TestABugInATaskBesideTheLoop:
    async def test_ends_the_process(self, queues: Queues, database: Path, tmp_path: Path) -> None:
        """It ends with a traceback and a specific exit code; it is never half alive."""
        settings = environment(**queues.settings, database=database, secrets_dir=tmp_path)

        async with worker_process(
            "run", settings=settings, folder=tmp_path, module="tests.faulty"
        ) as worker:
            assert await worker.exit_code() == 1

        assert worker.said("crashed", level="error")
        assert "a bug in a task beside the loop" in worker.output


class TestAReaderOfTheLogThatStandsStill:
    async def test_does_not_hold_the_worker_up(
        self, queues: Queues, database: Path, tmp_path: Path
    ) -> None:
        """Lines are dropped and counted; messages are still projected."""
        settings = environment(
            **queues.settings, database=database, secrets_dir=tmp_path, batch_size=1
        )
        with ExitStack() as stack:
            reading, writing = os.pipe()
            stack.callback(os.close, reading)
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            process = await asyncio.create_subprocess_exec(
                *RUN, env=settings, cwd=tmp_path, stdout=writing
            )
            os.close(writing)
            try:
                await queues.declare()
                await queues.publish(MESSAGES)
                await eventually(lambda: rows_or_none(database) == expected_rows(MESSAGES))
                assert os.read(reading, PIPE_BYTES)

                await queues.publish([planned("e-last")])
                lines = b""
                while b"log_lines_dropped" not in lines:
                    lines += await asyncio.to_thread(os.read, reading, PIPE_BYTES)
            finally:
                process.kill()
                await process.wait()


class TestAReaderOfTheLogThatIsGone:
    async def test_does_not_end_the_worker(
        self, queues: Queues, database: Path, tmp_path: Path
    ) -> None:
        """Nobody reads the log, and the rows are still right."""
        settings = environment(**queues.settings, database=database, secrets_dir=tmp_path)
        reading, writing = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *RUN, env=settings, cwd=tmp_path, stdout=writing
        )
        os.close(writing)
        os.close(reading)
        try:
            await queues.declare()
            await queues.publish(MESSAGES)
            await eventually(lambda: rows_or_none(database) == expected_rows(MESSAGES))
        finally:
            process.kill()
            await process.wait()
