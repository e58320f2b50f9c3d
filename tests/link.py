"""A worker that consumes through its own proxy, and its state at the end."""

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aio_pika.abc import AbstractIncomingMessage

from tests.builders import Message, planned, started
from tests.database import count_log, rows
from tests.oracle import Row, expected_rows
from tests.processes import WorkerProcess, environment, worker_process
from tests.proxy import Proxy
from tests.queues import Queues, queues_on
from tests.rabbitmq import RabbitMQNode
from tests.waiting import LISTING_SECONDS, LOOK_SECONDS, eventually

# The worker notices a silent peer within 33 seconds, and the broker a silent worker within 30.
# Several workers wait for both at the same time.
PATIENCE_SECONDS = 120

_numbers = itertools.count()


@dataclass(frozen=True)
class Ending:
    """The state after the worker has drained."""

    worker: WorkerProcess
    published: list[Message]
    rows: list[Row]
    left: int
    """Messages that are still in the queue."""
    letters: list[AbstractIncomingMessage]

    def require_whole(self) -> None:
        """Check that nothing was lost and nothing was dead-lettered."""
        assert self.rows == expected_rows(self.published)
        assert self.left == 0
        assert self.letters == []
        self.worker.require_calm()


@dataclass
class Link:
    """The worker, its queue, and the proxy between them."""

    node: RabbitMQNode
    queues: Queues
    proxy: Proxy
    worker: WorkerProcess
    database: Path
    published: list[Message] = field(default_factory=list)

    async def publish(self, events: int) -> None:
        """Publish two messages for each of this many events, not through the proxy."""
        names = [f"e-{next(_numbers)}" for _ in range(events)]
        messages = [make(name) for name in names for make in (planned, started)]
        await self.queues.publish(messages)
        self.published += messages

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition in this process; on failure, show what the worker said meanwhile."""
        try:
            await eventually(condition, PATIENCE_SECONDS, LOOK_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.worker.output}") from error

    async def until_committed(self) -> None:
        """Wait until everything published is in the log."""
        await self.until(lambda: count_log(self.database) >= len(self.published))

    async def until_lost(self) -> None:
        """Wait until the worker knows that its session is over."""
        await self.until(lambda: bool(self.worker.said("connection_lost")))

    async def until_delivered(self) -> None:
        """Wait until the broker has delivered everything."""
        await self.queues.until(lambda depth: depth.ready == 0, PATIENCE_SECONDS)

    async def until_dropped(self) -> None:
        """Wait until the broker has dropped the worker's connection."""
        await self.queues.until(lambda depth: depth.consumers == 0, PATIENCE_SECONDS)

    async def until_acked(self) -> None:
        """Wait until everything is acked."""

        async def is_acked() -> bool:
            listed = await self.node.ctl("list_queues", "name", "messages")
            return f"{self.queues.name}\t0\n" in listed

        await eventually(is_acked, PATIENCE_SECONDS, LISTING_SECONDS)

    async def end(self) -> Ending:
        """Let the worker finish, drain it, and return its state."""
        await self.until_committed()
        await self.until_acked()
        self.worker.terminate()
        assert await self.worker.exit_code() == 0
        left = await self.queues.left()
        letters = await self.queues.take_dead_letters()
        return Ending(self.worker, self.published, rows(self.database), left, letters)


@asynccontextmanager
async def linked(node: RabbitMQNode, folder: Path, module: str = "worker") -> AsyncIterator[Link]:
    """Hold a link whose worker has projected something; leaving the block removes every trace.

    `module` is started instead of `worker`.
    """
    async with AsyncExitStack() as stack:
        queues = await stack.enter_async_context(queues_on(node.url))
        proxy = await stack.enter_async_context(Proxy(node.port))
        await proxy.listen()
        database = folder / "projection.db"
        of_this = {**queues.settings, "amqp_url": proxy.url, "database": database}
        process = worker_process(
            "run",
            settings=environment(**of_this, secrets_dir=folder),
            folder=folder,
            module=module,
        )
        worker = await stack.enter_async_context(process)
        await worker.wait_for_log("connected")
        link = Link(node, queues, proxy, worker, database)
        await link.publish(1)
        await worker.wait_until_settled(2)
        yield link
