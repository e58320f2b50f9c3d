"""Several workers that share the partitions of one queue, observed together."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from tests.benchmarks.broker import Broker
from tests.benchmarks.running import MeasuredWorker, running_worker
from tests.benchmarks.usage import cpu_seconds, peak_bytes
from tests.waiting import Patience

# Each look costs a worker milliseconds, which are part of what is measured.
POLL_SECONDS = 0.5


class Workers:
    """Workers that run."""

    def __init__(self, workers: list[MeasuredWorker]) -> None:
        """Observe these."""
        self.each = workers

    async def outcomes(self) -> dict[str, int]:
        """Return how many messages they have committed and acked, by outcome."""
        found = await asyncio.gather(*(worker.outcomes() for worker in self.each))
        return {name: sum(outcomes[name] for outcomes in found) for name in found[0]}

    async def until_settled(self, messages: int) -> dict[str, int]:
        """Wait until together they have settled at least this many, and return the outcomes."""
        waiting = Patience()
        before = 0
        while sum((outcomes := await self.outcomes()).values()) < messages:
            settled = sum(outcomes.values())
            if settled > before:
                before, waiting = settled, Patience()
            assert not waiting.is_over(), f"no progress after {settled:,} of {messages:,} messages"
            await asyncio.sleep(POLL_SECONDS)  # noqa: TID251 - asking too often would slow down what is measured
        return outcomes

    async def batches(self) -> int:
        """Return in how many transactions that was."""
        return sum([await worker.batches() for worker in self.each])

    def cpu_seconds(self) -> float:
        """Return the CPU time of all of them so far."""
        return sum(cpu_seconds(worker.pid) for worker in self.each)

    def peak_bytes(self) -> int:
        """Return the peak memory of the largest."""
        return max(peak_bytes(worker.pid) for worker in self.each)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let them do nothing during the block, for less than the broker waits for a heartbeat."""
        for worker in self.each:
            worker.freeze()
        yield
        for worker in self.each:
            worker.thaw()

    async def stop(self) -> None:
        """Stop all of them as an operator does, and wait until they have drained."""
        await asyncio.gather(*(worker.stop() for worker in self.each))


@asynccontextmanager
async def running_workers(
    broker: Broker, queue: str, url: str, number: int
) -> AsyncIterator[Workers]:
    """Start workers at the same time, as a Deployment does, and wait until they consume."""
    async with AsyncExitStack() as stack:
        starting = [running_worker(broker, queue, url, ordinal=each) for each in range(number)]
        workers = await asyncio.gather(*map(stack.enter_async_context, starting))
        await asyncio.gather(*(worker.consumes() for worker in workers))
        yield Workers(workers)
