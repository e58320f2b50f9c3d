"""Runs one contender on one full queue, and returns its costs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.broker import EXCHANGE, Broker
from tests.benchmarks.contenders import CONTENDERS, WORKER
from tests.benchmarks.spawning import program
from tests.benchmarks.usage import cpu_seconds, peak_bytes
from tests.health import read
from tests.processes import WorkerProcess, environment, worker_process
from tests.waiting import patience, patiently

POLL_SECONDS = 0.05
SHORTEST_POLL_SECONDS = 0.005
SETTLED = "projection_messages_total{"
CONTENDER_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Run:
    """What it cost to take everything that waited."""

    messages: int
    seconds: float
    """From the first delivery to the last ack."""
    cpu_seconds: float
    """The contender's CPU time in that period, user and system."""
    broker_cpu_seconds: float = 0.0
    peak_bytes: int = 0
    """The peak memory of the process, if it was requested."""

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds


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

    async def settled(self) -> int:
        """Return how many messages it has committed and acked."""
        text = await asyncio.to_thread(read, self._url)
        lines = [line for line in text.splitlines() if line.startswith(SETTLED)]
        return round(sum(float(line.rpartition(" ")[2]) for line in lines))

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

    async def stop(self) -> None:
        """Stop it as an operator does, and wait until it has drained."""
        self._process.terminate()
        assert await self._process.exit_code() == 0, self._process.output


@asynccontextmanager
async def running_worker(
    broker: Broker, queue: str, database: Path, **settings: object
) -> AsyncIterator[MeasuredWorker]:
    """Start the worker with default settings, except for addresses and these."""
    of_this = environment(
        amqp_url=broker.url,
        exchange=EXCHANGE,
        queue=queue,
        database=database,
        log_format=None,
        log_level=None,
        **settings,
    )
    async with worker_process("run", settings=of_this, folder=database.parent) as process:
        yield MeasuredWorker(process, (await process.wait_for_log("health_served"))["url"])


async def drain(
    broker: Broker, queue: str, database: Path, messages: int, **settings: object
) -> Run:
    """Let the worker settle what waits in a queue."""
    async with running_worker(broker, queue, database, **settings) as worker:
        await worker.consumes()
        began, cpu, of_broker = time.monotonic(), cpu_seconds(worker.pid), broker.cpu_seconds()
        ended = await worker.until_settled(messages)
        run = Run(
            messages=messages,
            seconds=ended - began,
            cpu_seconds=cpu_seconds(worker.pid) - cpu,
            broker_cpu_seconds=broker.cpu_seconds() - of_broker,
            peak_bytes=peak_bytes(worker.pid),
        )
        await broker.until_empty(queue)
        await worker.stop()
    return run


async def run(broker: Broker, name: str, queue: str, database: Path, messages: int) -> Run:
    """Let a contender take what waits in a queue."""
    if name == WORKER:
        return await drain(broker, queue, database, messages)
    module = f"contenders.{CONTENDERS[name].module}"
    async with (
        patiently(CONTENDER_SECONDS),
        program(module, broker.url, queue, database, messages) as contender,
    ):
        began = await contender.told()
        of_broker = broker.cpu_seconds()
        ended = await contender.told()
        of_broker = broker.cpu_seconds() - of_broker
        if CONTENDERS[name].needs_queue:
            await broker.until_empty(queue)
        await contender.finish()
    return Run(
        messages=messages,
        seconds=ended["seconds"] - began["seconds"],
        cpu_seconds=ended["cpu_seconds"] - began["cpu_seconds"],
        broker_cpu_seconds=of_broker,
    )
