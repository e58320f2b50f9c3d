"""The workers: one is kept running, as a service manager does; sometimes a second stands by."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from signal import Signals

from tests.chaos.moments import pause
from tests.processes import WorkerProcess, worker_process
from tests.waiting import patience
from worker.deliveries import Verdict

LONG_SECONDS = 3_600
# As long as one that cannot start may take to say so before the next one tries.
RESTART_SECONDS = 0.2
CHANGES = (
    "connected", "connection_lost", "holding", "resumed", "blocked", "unblocked", "standing_by",
    "taking_over", "draining", "drain_timed_out", "ended_at_once", "quarantined", "topology_wrong",
)  # fmt: skip


class Fleet:
    """Every worker of the run, and what they all said and how they ended."""

    def __init__(self, settings: dict[str, str], folder: Path) -> None:
        """Start workers with the settings; write what they say to a file in the folder."""
        self.settings = settings
        self._folder = folder
        self._log = folder / "workers.log"
        self._log.touch()
        self.workers: list[WorkerProcess] = []
        """Those that run, the oldest first."""
        self.inside: Sequence[str] = ()
        """What only the next worker is started under."""
        self.module = "worker"
        self.starts = 0
        self.exit_codes: Counter[int] = Counter()
        self.failures: Counter[str] = Counter()
        """Why workers gave up by themselves, in their words."""
        self.verdicts: Counter[str] = Counter()
        self.changes: Counter[str] = Counter()
        """How often workers said that something begins or ends, by the word of their log."""
        self.foreign: list[str] = []
        """What a worker said that is no log line, or has a traceback in it."""

    @property
    def output(self) -> Path:
        """The file with everything that workers said which have ended."""
        return self._log

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keep a worker running; at the end of the block it is drained, and not started again."""
        stop = asyncio.Event()
        keeping = asyncio.create_task(self._keep(stop))
        try:
            yield
        finally:
            stop.set()
            await keeping

    async def _keep(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            async with self.worker() as worker:
                ended = asyncio.create_task(worker.outlives(LONG_SECONDS))
                stopped = asyncio.create_task(stop.wait())
                await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
                stopped.cancel()
                if stop.is_set():
                    self.send(worker, Signals.SIGTERM)
                    await worker.outlives(patience())
                ended.cancel()
            if worker.said("failed"):
                await pause(RESTART_SECONDS)

    @asynccontextmanager
    async def worker(self, **settings: str) -> AsyncIterator[WorkerProcess]:
        """Run one worker that nobody starts again; it is killed at the end if it still runs."""
        inside, self.inside = self.inside, ()
        async with worker_process(
            "run",
            settings=self.settings | settings,
            folder=self._folder,
            inside=inside,
            module=self.module,
        ) as worker:
            self.starts += 1
            self.workers.append(worker)
            try:
                yield worker
            finally:
                self.workers.remove(worker)
        self._account(worker, await worker.exit_code())

    def any(self, rng: Random) -> WorkerProcess | None:
        """Choose one that runs, if one does."""
        return rng.choice(self.workers) if self.workers else None

    def send(self, worker: WorkerProcess | None, number: Signals) -> bool:
        """Send a signal; tell whether there was still somebody to get it."""
        if worker not in self.workers:
            return False
        # Not through the standard library's process: before it sends a signal, it asks whether the
        # process has ended, and takes the exit code from who waits for it (and then says 255).
        with suppress(ProcessLookupError):
            os.kill(worker.pid, number)
            return True
        return False

    def _account(self, worker: WorkerProcess, exit_code: int) -> None:
        with self._log.open("a") as log:
            log.write(worker.output)
        self.exit_codes[exit_code] += 1
        self.failures.update(line["reason"] for line in worker.said("failed"))
        self.verdicts.update({each.value: worker.total(each) for each in Verdict})
        self.changes.update({each: len(worker.said(each)) for each in CHANGES})
        self.foreign += [
            line
            for line in worker.output.splitlines()
            if not line.startswith("{") or "Traceback" in line
        ]
