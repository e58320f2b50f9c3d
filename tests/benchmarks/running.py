"""Runs one contender on one full queue, and returns its costs."""

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.bench import DISK
from tests.benchmarks.broker import EXCHANGE, Broker
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.spawning import program
from tests.benchmarks.usage import cpu_seconds, peak_bytes
from tests.health import read
from tests.processes import WorkerProcess, environment, worker_process
from tests.waiting import patience, patiently

POLL_SECONDS = 0.05
SHORTEST_POLL_SECONDS = 0.005
OUTCOME = re.compile(r'^projection_messages_total\{outcome="(\w+)"\} (\S+)', re.MULTILINE)
BATCHES = re.compile(r"^projection_batch_messages_count (\S+)", re.MULTILINE)
CONTENDER_SECONDS = 900

CPUSeconds = Callable[[], float]
"""Returns the CPU time that a server has used so far."""


@dataclass(frozen=True, slots=True)
class Run:
    """What it cost to take everything that waited."""

    messages: int
    seconds: float
    """From the first delivery to the last ack."""
    cpu_seconds: float
    """The contender's CPU time in that period, user and system."""
    broker_cpu_seconds: float = 0.0
    database_cpu_seconds: float = 0.0
    """The CPU time of PostgreSQL's processes, if the rows are there."""
    peak_bytes: int = 0
    """The peak memory of the process, if it was requested."""

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds


def nothing() -> float:
    """Return what a database costs that is part of the contender's process."""
    return 0.0


class MeasuredWorker:
    """The worker as shipped, observed from outside."""

    def __init__(self, process: WorkerProcess, url: str) -> None:
        """Observe a worker whose metrics are at this address."""
        self._process = process
        self._url = f"{url}/metrics"

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    async def consumes(self) -> None:
        """Wait until it reports that it consumes."""
        await self._process.wait_for_log("connected")

    async def outcomes(self) -> dict[str, int]:
        """Return how many messages it has committed and acked, by outcome."""
        text = await asyncio.to_thread(read, self._url)
        return {name: round(float(number)) for name, number in OUTCOME.findall(text)}

    async def batches(self) -> int:
        """Return in how many transactions that was."""
        (number,) = BATCHES.findall(await asyncio.to_thread(read, self._url))
        return round(float(number))

    async def settled(self) -> int:
        """Return how many messages it has committed and acked."""
        return sum((await self.outcomes()).values())

    async def until_settled(self, messages: int) -> float:
        """Wait until it has settled this many, and return the time.

        Asks twenty times a second, and more often when it is nearly done, so that a figure is wrong
        by only a few milliseconds, to the worker's disadvantage.
        """
        began = progressed = time.monotonic()
        before = 0
        while True:
            settled, now = await self.settled(), time.monotonic()
            if settled >= messages:
                return now
            if settled > before:
                before, progressed = settled, now
            assert now - progressed < patience(), self._process.output
            to_go = (messages - settled) * (now - began) / max(1, settled)
            pause = min(POLL_SECONDS, max(SHORTEST_POLL_SECONDS, to_go / 2))
            await asyncio.sleep(pause)  # noqa: TID251 - asking too often would slow down what is measured

    def freeze(self) -> None:
        """Let it do nothing until it is thawed, while its connections stay open."""
        self._process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it continue."""
        self._process.send(signal.SIGCONT)

    async def kill(self) -> None:
        """Kill it as a crash would, and return when it is gone."""
        await self._process.kill()

    async def stop(self) -> None:
        """Stop it as an operator does, and wait until it has drained."""
        self._process.terminate()
        assert await self._process.exit_code() == 0, self._process.output


@asynccontextmanager
async def running_worker(
    broker: Broker, queue: str, database: Path | str, **settings: object
) -> AsyncIterator[MeasuredWorker]:
    """Start the worker with default settings, except for addresses and these.

    The database is a file, or the address of one on PostgreSQL.
    """
    folder = database.parent if isinstance(database, Path) else DISK
    of_this = environment(
        amqp_url=broker.url,
        exchange=EXCHANGE,
        queue=queue,
        database=database,
        log_format=None,
        log_level=None,
        **settings,
    )
    async with worker_process("run", settings=of_this, folder=folder) as process:
        yield MeasuredWorker(process, (await process.wait_for_log("health_served"))["url"])


async def drain(
    broker: Broker,
    queue: str,
    database: Path | str,
    messages: int,
    *,
    database_cpu: CPUSeconds = nothing,
    **settings: object,
) -> Run:
    """Let the worker settle what waits in a queue."""
    async with running_worker(broker, queue, database, **settings) as worker:
        await worker.consumes()
        began, cpu, of_broker = time.monotonic(), cpu_seconds(worker.pid), broker.cpu_seconds()
        of_database = database_cpu()
        ended = await worker.until_settled(messages)
        run = Run(
            messages=messages,
            seconds=ended - began,
            cpu_seconds=cpu_seconds(worker.pid) - cpu,
            broker_cpu_seconds=broker.cpu_seconds() - of_broker,
            database_cpu_seconds=database_cpu() - of_database,
            peak_bytes=peak_bytes(worker.pid),
        )
        await broker.until_empty(queue)
        await worker.stop()
    return run


async def run(
    broker: Broker,
    name: str,
    queue: str,
    database: Path | str,
    messages: int,
    database_cpu: CPUSeconds = nothing,
) -> Run:
    """Let a contender take what waits in a queue."""
    if not CONTENDERS[name].module:
        return await drain(broker, queue, database, messages, database_cpu=database_cpu)
    module = f"contenders.{CONTENDERS[name].module}"
    async with (
        patiently(CONTENDER_SECONDS),
        program(module, broker.url, queue, database, messages) as contender,
    ):
        began = await contender.told()
        of_broker, of_database = broker.cpu_seconds(), database_cpu()
        ended = await contender.told()
        of_broker, of_database = broker.cpu_seconds() - of_broker, database_cpu() - of_database
        if CONTENDERS[name].needs_queue:
            await broker.until_empty(queue)
        await contender.finish()
    return Run(
        messages=messages,
        seconds=ended["seconds"] - began["seconds"],
        cpu_seconds=ended["cpu_seconds"] - began["cpu_seconds"],
        broker_cpu_seconds=of_broker,
        database_cpu_seconds=of_database,
    )
