import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path

import pytest

from tests.processes import environment, worker_process
from tests.waiting import eventually
from worker.telemetry.logs import MAX_WAITING_LINES, Lines

LINE = "x" * 99 + "\n"
# The least that Linux gives a pipe.
PIPE_BYTES = 4_096
# Nothing listens there.
NO_BROKER = "amqp://127.0.0.1:9/"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    fcntl(writing, F_SETPIPE_SZ, PIPE_BYTES)
    yield reading, writing
    for descriptor in (reading, writing):
        with suppress(OSError):
            os.close(descriptor)


def read(descriptor: int, until: bytes) -> list[str]:
    """Read lines until one contains this text."""
    text = b""
    while until not in text:
        text += os.read(descriptor, PIPE_BYTES)
    return text.decode().splitlines(keepends=True)


class TestLines:
    """Neither the processes that share standard output nor its reader are disturbed."""

    @pytest.mark.parametrize("is_blocking", [True, False])
    def test_of_a_shared_pipe_leave_it_as_it_is(
        self, pipe: tuple[int, int], *, is_blocking: bool
    ) -> None:
        """If the worker made it non-blocking, its neighbours would fail with EAGAIN."""
        reading, writing = pipe
        os.set_blocking(writing, is_blocking)

        Lines(writing).write(LINE)

        assert os.get_blocking(writing) is is_blocking
        assert read(reading, b"\n") == [LINE]

    @pytest.mark.parametrize("is_blocking", [True, False])
    def test_that_nobody_reads_are_dropped_and_counted(
        self, pipe: tuple[int, int], *, is_blocking: bool
    ) -> None:
        """Lines that fit come in order, followed by the number of dropped ones."""
        reading, writing = pipe
        os.set_blocking(writing, is_blocking)
        lines = Lines(writing)
        numbered = [f"{number:08d}{LINE}" for number in range(3 * MAX_WAITING_LINES)]

        for line in numbered:
            lines.write(line)
            # As structlog does after each line.
            lines.flush()

        *kept, account = read(reading, b"log_lines_dropped")
        assert len(kept) >= MAX_WAITING_LINES
        assert kept == numbered[: len(kept)]
        assert json.loads(account)["lines"] == len(numbered) - len(kept)

    def test_that_cannot_be_written_are_counted_when_others_can(self, tmp_path: Path) -> None:
        """A full disk ends nothing."""
        with ExitStack() as stack:
            full = stack.enter_context(Path("/dev/full").open("w"))
            file = stack.enter_context((tmp_path / "log").open("w"))
            lines = Lines(descriptor := os.dup(full.fileno()))
            for _ in range(3):
                lines.write(LINE)
            os.dup2(file.fileno(), descriptor)

            lines.write(LINE)
            lines.finish()

            account, line = (tmp_path / "log").read_text().splitlines(keepends=True)
            assert json.loads(account) == {
                "event": "log_lines_dropped", "level": "warning", "lines": 3,
            }  # fmt: skip
            assert line == LINE

    async def test_of_a_worker_whose_output_is_closed_are_missed_by_nobody(
        self, database: Path, tmp_path: Path
    ) -> None:
        """The worker runs and writes nothing to standard error."""
        settings = environment(amqp_url=NO_BROKER, database=database, secrets_dir=tmp_path)
        closing = ("sh", "-c", 'exec "$@" >&-', "sh")

        async with worker_process(
            "run", settings=settings, folder=tmp_path, inside=closing
        ) as worker:
            await eventually(database.exists)
            worker.terminate()
            assert await worker.exit_code() == 0

        assert worker.output == ""


class TestTheConsoleFormat:
    async def test_begins_each_line_with_the_time(self, database: Path, tmp_path: Path) -> None:
        """Then come the level, the event, and the fields in the order in which they were logged."""
        settings = environment(
            amqp_url=NO_BROKER, database=database, secrets_dir=tmp_path, log_format="console"
        )
        async with worker_process("run", settings=settings, folder=tmp_path) as worker:
            await eventually(lambda: "connection_lost" in worker.output)
        first = re.sub(r"\x1b\[[\d;]*m", "", worker.output.splitlines()[0])

        assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[info +\] starting +pid=\d+ database=", first)


class TestATerminalThatCloses:
    async def test_ends_the_worker_like_any_signal(self, database: Path, tmp_path: Path) -> None:
        """The worker finishes what it has taken, and writes its lines."""
        settings = environment(amqp_url=NO_BROKER, database=database, secrets_dir=tmp_path)
        async with worker_process("run", settings=settings, folder=tmp_path) as worker:
            await worker.wait_for_log("connection_lost")

            worker.send(signal.SIGHUP)

            assert await worker.exit_code() == 0
        assert worker.said("draining", signal="SIGHUP")
        assert worker.said("stopped")

    async def test_does_not_end_one_that_ignores_it(self, database: Path, tmp_path: Path) -> None:
        """That is the purpose of nohup."""
        settings = environment(amqp_url=NO_BROKER, database=database, secrets_dir=tmp_path)
        ignoring = ("sh", "-c", "trap '' HUP; exec \"$@\"", "sh")
        async with worker_process(
            "run", settings=settings, folder=tmp_path, inside=ignoring
        ) as worker:
            await worker.wait_for_log("connection_lost")
            worker.send(signal.SIGHUP)

            worker.terminate()

            assert await worker.exit_code() == 0
        assert worker.said("draining", signal="SIGTERM")
        assert not worker.said("draining", signal="SIGHUP")
