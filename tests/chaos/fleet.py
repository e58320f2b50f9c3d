"""The workers. A number of them is kept running, as by a service manager."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from signal import Signals
from types import TracebackType
from typing import Self

from tests.chaos.moments import pause
from tests.processes import WorkerProcess, worker_process
from tests.waiting import patience
from worker.deliveries import Verdict

LONG_SECONDS = 3_600
# The pause before the next worker starts, in case the last one could not start.
RESTART_SECONDS = 0.2
CHANGES = (
    "connected", "connection_lost", "holding", "resumed", "blocked", "unblocked", "standing_by",
    "taking_over", "draining", "drain_timed_out", "ended_at_once", "quarantined", "topology_wrong",
)  # fmt: skip


class Fleet:
    """Every worker of the run, with its output and exit code."""

    def __init__(
        self,
        settings: dict[str, str],
        folder: Path,
        places: Sequence[Mapping[str, str]] = ({},),
    ) -> None:
        """Start workers with the settings; write their output to a file in the folder.

        The workers that are kept take the further settings of the places in turn.
        """
        self.settings = settings
        self._places = places
        self._keepers: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        self._folder = folder
        self._log = folder / "workers.log"
        self._log.touch()
        self.workers: list[WorkerProcess] = []
        """The workers that run, the oldest first."""
        self.inside: Sequence[str] = ()
        """A program to start the next worker under, and only that one."""
        self.module = "worker"
        self.starts = 0
        self.exit_codes: Counter[int] = Counter()
        self.failures: Counter[str] = Counter()
        """Why workers gave up, from their log."""
        self.verdicts: Counter[str] = Counter()
        self.changes: Counter[str] = Counter()
        """How often workers reported each event of their log."""
        self.foreign: list[str] = []
        """Output of workers that is not a log line, or contains a traceback."""

    @property
    def output(self) -> Path:
        """The file with the output of all workers that have ended."""
        return self._log

    @property
    def size(self) -> int:
        """How many workers are kept running."""
        return len(self._keepers)

    async def become(self, size: int) -> None:
        """Keep this many workers running; surplus ones are drained, and not started again."""
        while self.size < size:
            stop = asyncio.Event()
            place = self._places[self.size % len(self._places)]
            self._keepers.append((asyncio.create_task(self._keep(stop, place)), stop))
        surplus = self._keepers[size:]
        del self._keepers[size:]
        for _, stop in surplus:
            stop.set()
        for keeping, _ in surplus:
            await keeping

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Drain all workers."""
        await self.become(0)

    @asynccontextmanager
    async def one_more(self) -> AsyncIterator[None]:
        """Keep one more worker running, until the block ends."""
        await self.become(self.size + 1)
        try:
            yield
        finally:
            await self.become(self.size - 1)

    async def _keep(self, stop: asyncio.Event, settings: Mapping[str, str]) -> None:
        while not stop.is_set():
            async with self.worker(**settings) as worker:
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
        """Run one worker without restarting it; kill it at the end if it still runs."""
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
        """Return a random running worker, if there is one."""
        return rng.choice(self.workers) if self.workers else None

    def some(self, rng: Random, number: int) -> list[WorkerProcess]:
        """Return this many random running workers, if there are as many."""
        return rng.sample(self.workers, min(number, len(self.workers)))

    def send(self, worker: WorkerProcess | None, number: Signals) -> bool:
        """Send a signal; return whether the worker was still there to get it."""
        if worker not in self.workers:
            return False
        # Not through the standard library's process: before it sends a signal, it polls whether the
        # process has ended, and takes the exit code from the task that waits (which then gets 255).
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
