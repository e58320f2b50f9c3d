"""The worker as an operator runs it: a process, known by its exit code and its log."""

import asyncio
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.waiting import patiently

ROOT = Path(__file__).parents[1]

Line = dict[str, Any]


class WorkerProcess:
    """`python -m worker ...` and its output."""

    def __init__(self, process: Process) -> None:
        """Watch a process that has been started."""
        self._process = process
        self._changed = asyncio.Condition()
        self._has_ended = False
        self.output = ""
        """Everything that it wrote, standard error included."""
        self.lines: list[Line] = []
        """Its log so far."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, and all its output is here."""
        return self._has_ended

    def said(self, event: str, **fields: Any) -> list[Line]:
        """Return the log lines of one event whose fields have these values."""
        wanted = {"event": event, **fields}
        return [line for line in self.lines if all(line.get(n) == v for n, v in wanted.items())]

    async def wait_for_log(self, event: str, times: int = 1, **fields: Any) -> Line:
        """Wait for the nth log line of an event, and return it."""
        await self._until(lambda: len(self.said(event, **fields)) >= times, f"{event} {fields}")
        return self.said(event, **fields)[times - 1]

    async def wait_until_settled(self, messages: int) -> None:
        """Wait until it has committed and settled at least this many deliveries."""
        await self._until(lambda: self.settled >= messages, f"{messages} settled messages")

    @property
    def settled(self) -> int:
        """How many deliveries it says that it has settled."""
        return sum(line["messages"] for line in self.said("batch_committed"))

    def total(self, verdict: str) -> int:
        """Return how many deliveries got a verdict, by its own account."""
        return sum(line.get(verdict, 0) for line in self.said("batch_committed"))

    def terminate(self) -> None:
        """Ask it to end, as an operator or a container runtime does."""
        self._process.terminate()

    def send(self, number: signal.Signals) -> None:
        """Send any signal."""
        self._process.send_signal(number)

    async def kill(self) -> None:
        """Kill it as a crash would, and return when it is gone."""
        if self._process.returncode is None:
            self._process.kill()
        await self.exit_code()

    async def exit_code(self) -> int:
        """Wait for its end and for all its output; return the exit code."""
        await self._until(lambda: self._has_ended, "its end")
        return await self._process.wait()

    async def outlives(self, seconds: float) -> bool:
        """Let it run this long; return whether it still does."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._has_ended), seconds)
            except TimeoutError:
                return True
        return False

    async def read(self) -> None:
        """Read its output until it ends."""
        assert self._process.stdout is not None
        async for raw in self._process.stdout:
            async with self._changed:
                self.output += raw.decode(errors="replace")
                if raw.startswith(b"{") and raw.endswith(b"}\n"):
                    self.lines.append(json.loads(raw))
                self._changed.notify_all()
        await self._process.wait()
        async with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def require_calm(self) -> None:
        """Fail if it wrote anything but log lines, or a traceback."""
        foreign = [line for line in self.output.splitlines() if not line.startswith("{")]
        assert not foreign, self.output
        assert "Traceback" not in self.output, self.output

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        async with self._changed:
            try:
                async with patiently():
                    await self._changed.wait_for(lambda: condition() or self._has_ended)
            except TimeoutError:
                raise AssertionError(f"no {what} in time:\n{self.output}") from None
        assert condition(), f"ended without {what}:\n{self.output}"


StartWorker = Callable[..., Awaitable[WorkerProcess]]
"""Starts a worker or one of its commands; takes settings as keywords, such as `batch_size=1`."""


@asynccontextmanager
async def worker_process(
    *arguments: str,
    settings: dict[str, str],
    folder: Path,
    inside: Sequence[str] = (),
    module: str = "worker",
) -> AsyncIterator[WorkerProcess]:
    """Start `python -m worker` with arguments; kill it, by its pid, at the end of the block.

    `inside` is a program that sets up an environment and then becomes the worker; `module` is
    started instead of `worker`.
    """
    program = [*inside, sys.executable, "-m", module, *arguments]
    async with watched(program, settings, folder) as worker:
        yield worker


@asynccontextmanager
async def watched(
    program: Sequence[str], settings: dict[str, str], folder: Path
) -> AsyncIterator[WorkerProcess]:
    """Start a program that is or becomes the worker; kill it at the end of the block."""
    if shutil.which("setpriv"):
        # The kernel kills it when the test run ends, even if that is killed.
        program = ["setpriv", "--pdeathsig", "KILL", *program]
    process = await asyncio.create_subprocess_exec(
        *program,
        env=settings,
        # A folder without a .env.
        cwd=folder,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        # The terminal's Ctrl-C is for the test run, which then ends the worker.
        start_new_session=True,
    )
    worker = WorkerProcess(process)
    reading = asyncio.create_task(worker.read())
    try:
        yield worker
    finally:
        await worker.kill()
        await reading


def environment(**settings: object) -> dict[str, str]:
    """Return the environment of a worker with these settings, except those that are None.

    None of the caller's own settings reach it.
    """
    usual = {"log_format": "json", "log_level": "debug", "health_port": 0}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
    wanted = {name: value for name, value in (usual | settings).items() if value is not None}
    worker = {f"WORKER_{name.upper()}": str(value) for name, value in wanted.items()}
    return kept | {"PYTHONPATH": str(ROOT)} | worker


def blocks(pid: int, number: signal.Signals) -> bool:
    """Return whether a process blocks a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition("SigBlk:")[2].split()[0], 16)
    return bool(mask >> (number - 1) & 1)
