"""What happens to the workers while messages arrive. This module only measures; it judges nothing.

Each act publishes a part of the story, and something happens in the middle of it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.demo.broker import DemoFailed, Say, until
from tests.demo.commands import command
from tests.demo.scale.servers import Servers, shares
from tests.demo.story import Publication, Story
from tests.processes import WorkerProcess, worker_process
from tests.rabbitmq import version
from worker.broker.partitions import Ranking

WORKERS = 4
FIRST, LATER = 8, 12
"""The numbers of partitions."""
PARTS = 4
# After each hundred messages, so that a part takes a few seconds.
PAUSE_SECONDS = 0.3
MOVES_BACK = (4, 0)
"""Since this version, RabbitMQ gives a queue to the consumer with the highest priority."""


@dataclass(slots=True)
class Measured:
    """The counts from the first publish to the end of the last worker."""

    confirmed: int = 0
    """How many publishes the broker has confirmed."""
    killed: dict[str, int] = field(default_factory=dict)
    """Exit codes of the workers that were killed."""
    killed_at: list[int] = field(default_factory=list)
    """How many messages were in the log then."""
    ended: dict[str, int] = field(default_factory=dict)
    """Exit codes of the others, after SIGTERM."""
    resized_at: int = 0
    """How many messages were in the log when it began."""
    left: dict[str, int] = field(default_factory=dict)
    """How many messages each queue has after that."""


@dataclass(frozen=True, slots=True)
class Member:
    """One worker, and its place among the others."""

    ranking: Ranking
    process: WorkerProcess
    settings: dict[str, str]


class Acts:
    """One story, and several workers that come and go."""

    def __init__(self, story: Story, servers: Servers, folder: Path, say: Say) -> None:
        """Publish to the broker; start workers on both servers."""
        self._story = story
        self._servers = servers
        self._folder = folder
        self._say = say
        self._stack = AsyncExitStack()
        self._members: dict[str, Member] = {}
        self._measured = Measured()

    async def run(self) -> Measured:
        """Let everything happen; return the counts."""
        async with self._stack:
            for number in range(WORKERS):
                await self._start(f"worker-{number + 1}", number)
            for member in self._members.values():
                await member.process.wait_for_log("connected")
            self._say(
                f"The messages of a chat go to one of {FIRST} queues, the partitions. Each has one "
                "consumer at a time.\nThe workers write the same tables, and know nothing of each "
                "other."
            )
            await self._show(f"{WORKERS} workers have started. Partitions of each:")
            await self._kill("worker-2", self._story.parts[0])
            await self._kill("worker-3", self._story.parts[1])
            await self._join("worker-5", 1, self._story.parts[2])
            await self._resize(self._story.parts[3])
            await self._finish()
        return self._measured

    async def _start(self, name: str, ordinal: int) -> None:
        settings = self._servers.settings(self._folder, FIRST)
        settings |= {"WORKER_NAME": name, "WORKER_ORDINAL": str(ordinal)}
        running = worker_process("run", settings=settings, folder=self._folder)
        process = await self._stack.enter_async_context(running)
        self._members[name] = Member(Ranking(name, ordinal), process, settings)

    async def _kill(self, name: str, part: Sequence[Publication]) -> None:
        member = self._members[name]
        async with self._publishing(part):
            await member.process.kill()
            del self._members[name]
            self._measured.killed[name] = await member.process.exit_code()
            self._measured.killed_at.append(await self._servers.count_log())
            self._say(f"  {name} (pid {member.process.pid}) is killed with SIGKILL ...")
            await self._show("  ... and the broker gives its partitions to others:")

    async def _join(self, name: str, ordinal: int, part: Sequence[Publication]) -> None:
        async with self._publishing(part):
            await self._start(name, ordinal)
            await self._members[name].process.wait_for_log("connected")
            self._say(f"  {name} (pid {self._members[name].process.pid}) joins.")
            if version() < MOVES_BACK:
                await self._show(
                    "  Before RabbitMQ 4.0, it gets partitions only when others leave them:"
                )
            else:
                await self._show("  It takes those that it has the highest priority for:")

    async def _resize(self, part: Sequence[Publication]) -> None:
        async with self._publishing(part):
            self._measured.resized_at = await self._servers.count_log()
            self._say(f"  projection-worker topology resize {LATER}")
            member = next(iter(self._members.values()))
            resize = ("topology", "resize", str(LATER))
            answer = await command(*resize, settings=member.settings, folder=self._folder)
            if answer.exit_code != 0:
                raise DemoFailed(f"The resize failed: {answer.complaint}{answer.printed}")
            for line in answer.printed.splitlines():
                self._say(f"    {line}")
            await self._show(f"  {LATER} partitions now:", partitions=LATER)

    async def _finish(self) -> None:
        async def is_done() -> bool:
            self._require_running()
            queues = await self._servers.queues()
            is_in_log = await self._servers.count_log() >= len(self._story.messages)
            return is_in_log and not any(queues.values())

        await until(is_done, "the queues are empty")
        self._say("The queues are empty; SIGTERM ends the workers.")
        for member in self._members.values():
            member.process.terminate()
        for name, member in self._members.items():
            self._measured.ended[name] = await member.process.exit_code()
        self._measured.left = await self._servers.queues()

    @asynccontextmanager
    async def _publishing(self, part: Sequence[Publication]) -> AsyncIterator[None]:
        """Publish a part; the block begins once a third of it is in the log."""
        before = await self._servers.count_log()
        self._say(f"Publishing {len(part):,} messages ...")
        publishing = asyncio.create_task(self._servers.broker.publish(part, PAUSE_SECONDS))
        try:

            async def is_there() -> bool:
                self._require_running()
                if publishing.done():
                    publishing.result()
                return await self._servers.count_log() >= before + len(part) // 3

            await until(is_there, "a third of them is in the log")
            yield
            self._measured.confirmed += await publishing
        finally:
            publishing.cancel()

    async def _show(self, sentence: str, partitions: int = FIRST) -> None:
        """Wait until each partition has a consumer, and say who consumes from how many."""
        workers = [member.ranking for member in self._members.values()]
        consumers: list[str] = []

        async def is_settled() -> bool:
            self._require_running()
            consumers[:] = await self._servers.consumers(workers, (FIRST, LATER))
            return len(consumers) == partitions and "nobody" not in consumers

        await until(is_settled, "each partition has a consumer")
        self._say(f"{sentence} {shares(consumers)}.")

    def _require_running(self) -> None:
        for name, member in self._members.items():
            if member.process.has_ended:
                raise DemoFailed(f"{name} ended by itself. It wrote:\n{member.process.output}")
