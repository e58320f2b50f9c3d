"""The load on the worker: it gets the story, and is killed in the middle of it.

This module only measures; it judges nothing.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.database import count_log
from tests.demo.broker import Broker, DemoFailed, Say, until
from tests.demo.story import Publication, Story
from tests.processes import WorkerProcess, worker_process
from worker.deliveries import Verdict

KILLS = 2
MOMENT_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Kill:
    """The counts around one SIGKILL."""

    exit_code: int
    in_log: int
    """The number of committed messages."""
    redelivered: int
    """Messages that the worker held unacked, and that the broker took back to redeliver."""
    unreported: int
    """Messages that it had acked, but did not live to report."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The counts from the first publish to the end of the last worker."""

    confirmed: int
    """The number of confirmed publishes."""
    kills: tuple[Kill, ...]
    reported: Counter[str]
    """Messages by verdict, as reported by all workers together."""
    exit_code: int
    """That of the last worker, after SIGTERM."""
    still_queued: int
    """The number of messages in the queue after that."""
    publish_seconds: float
    work_seconds: float
    """The time during which a worker ran that was not yet killed or frozen, with its start."""


class Load:
    """One story on its way through one queue."""

    def __init__(self, story: Story, broker: Broker, settings: dict[str, str], say: Say) -> None:
        """Publish to the broker; start workers with the settings."""
        self._story = story
        self._broker = broker
        self._settings = settings
        self._database = Path(settings["WORKER_DATABASE"])
        self._say = say
        self._confirmed = 0
        self._reported: Counter[str] = Counter()
        self._publish_seconds = 0.0
        self._work_seconds = 0.0

    async def run(self) -> Measured:
        """Publish a part and kill a worker in the middle, repeatedly; let the last one finish."""
        *parts, last = self._story.parts
        kills = [await self._kill_one(number, part) for number, part in enumerate(parts, 1)]
        exit_code = await self._finish(last)
        left = await self._broker.ready(consumers=0)
        return Measured(
            confirmed=self._confirmed,
            kills=tuple(kills),
            reported=self._reported,
            exit_code=exit_code,
            still_queued=left,
            publish_seconds=self._publish_seconds,
            work_seconds=self._work_seconds,
        )

    async def _kill_one(self, number: int, part: Sequence[Publication]) -> Kill:
        sent = await self._publish(part)
        self._say(f"Published {sent:,} messages while no worker runs; the queue keeps them all.")
        waiting = await self._broker.ready(consumers=0)
        started = time.monotonic()
        async with self._worker() as worker:
            self._say(f"Worker {number} (pid {worker.pid}) has started ...")
            await self._until_committed(worker, count_log(self._database) + sent // 3)
            # Frozen at whatever point it is, so that what it leaves behind can be counted.
            os.kill(worker.pid, signal.SIGSTOP)
            self._work_seconds += time.monotonic() - started
            still_ready = await self._broker.ready(consumers=1)
            await worker.kill()
            exit_code = await worker.exit_code()
        after = await self._broker.ready(consumers=0)
        self._count(worker)
        kill = Kill(
            exit_code=exit_code,
            in_log=count_log(self._database),
            redelivered=after - still_ready,
            unreported=waiting - after - worker.settled,
        )
        self._say(
            f"  ... and killed with SIGKILL: the log has {kill.in_log:,} messages, and "
            f"{kill.redelivered:,} unacked ones will be redelivered."
        )
        return kill

    async def _until_committed(self, worker: WorkerProcess, messages: int) -> None:
        """Return as soon as this many messages are in the log.

        At once, because a worker dead-letters and acks directly after its commit.
        """

        async def is_there() -> bool:
            if not await worker.outlives(MOMENT_SECONDS):
                raise DemoFailed(f"The worker ended by itself. It wrote:\n{worker.output}")
            return count_log(self._database) >= messages

        await until(is_there, f"the worker (pid {worker.pid}) has {messages:,} messages in its log")

    def _count(self, worker: WorkerProcess) -> None:
        self._reported += Counter({verdict.value: worker.total(verdict) for verdict in Verdict})

    async def _finish(self, part: Sequence[Publication]) -> int:
        waiting = await self._broker.ready(consumers=0)
        started = time.monotonic()
        async with self._worker() as worker:
            self._say(f"Worker {KILLS + 1} (pid {worker.pid}) has started ...")
            sent = await self._publish(part)
            self._say(f"  ... and gets the last {sent:,} messages while it works.")
            await worker.wait_until_settled(waiting + sent)
            self._work_seconds += time.monotonic() - started
            self._say("  It has settled every message; SIGTERM ends it.")
            worker.terminate()
            exit_code = await worker.exit_code()
        self._count(worker)
        return exit_code

    def _worker(self) -> AbstractAsyncContextManager[WorkerProcess]:
        return worker_process("run", settings=self._settings, folder=self._database.parent)

    async def _publish(self, part: Sequence[Publication]) -> int:
        started = time.monotonic()
        sent = await self._broker.publish(part)
        self._publish_seconds += time.monotonic() - started
        self._confirmed += sent
        return sent
