"""The faults. Each one causes a failure, lets it last, and undoes it, however it is ended."""

import asyncio
import resource
import sys
from asyncio.subprocess import DEVNULL
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from signal import Signals
from typing import NamedTuple

from tests.chaos.fleet import Fleet
from tests.chaos.moments import pause
from tests.chaos.traffic import Traffic
from tests.chaos.witness import appended
from tests.proxy import BASIC_ACK, Proxy, Way
from tests.rabbitmq import RabbitMQNode
from tests.servers import NodeFailed
from tests.strace import SYNC
from tests.waiting import eventually

# A worker starts and commits its first batch in less, unless something else is wrong, too.
COMMIT_SECONDS = 1.8
# Longer than the kills of a simultaneous fault take.
ACK_SECONDS = 15.0
# The time from the commit of a batch to its ack, and to the next commit.
BATCH_SECONDS = 0.03
# The size of one SQLite page; every write beyond it fails.
FULL_BYTES = 4_096
WATERMARK = 0.4
LOCKER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("BEGIN IMMEDIATE")
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


@dataclass(slots=True)
class Stage:
    """The parts that faults act on."""

    node: RabbitMQNode
    proxy: Proxy
    fleet: Fleet
    traffic: Traffic
    database: Path
    injected: Counter[str] = field(default_factory=Counter)

    async def ctl(self, *arguments: str) -> None:
        """Run a command on the broker, and ignore that it may be down."""
        with suppress(NodeFailed):
            await self.node.ctl(*arguments)


async def kill(stage: Stage, rng: Random) -> None:
    """Kill workers at any time after their start, or around a commit."""
    for _ in range(rng.randrange(3, 7)):
        if rng.random() < 0.4:
            await pause(rng.uniform(0, 1))
        else:
            # A worker begins with one message, in case it is deadly; later batches are full.
            await _until_appended(stage, rng.choice([1, 2, 100, 500, 1_000]))
            await pause(rng.uniform(0, BATCH_SECONDS))
        stage.injected["kill"] += stage.fleet.send(stage.fleet.any(rng), Signals.SIGKILL)


async def _until_appended(stage: Stage, messages: int) -> None:
    """Wait until this many more messages are committed, but not for long."""
    wanted = appended(stage.database) + messages
    with suppress(AssertionError):
        await eventually(lambda: appended(stage.database) >= wanted, COMMIT_SECONDS)


async def terminate(stage: Stage, rng: Random) -> None:
    """Send SIGTERM to workers, sometimes twice."""
    for _ in range(rng.randrange(1, 4)):
        worker = stage.fleet.any(rng)
        stage.injected["terminate"] += stage.fleet.send(worker, Signals.SIGTERM)
        if rng.random() < 0.3:
            await pause(rng.uniform(0, 0.1))
            stage.fleet.send(worker, Signals.SIGTERM)
        await pause(rng.uniform(0.5, 3))


async def freeze(stage: Stage, rng: Random) -> None:
    """Freeze a worker for some seconds, as a machine without memory does."""
    worker = stage.fleet.any(rng)
    stage.injected["freeze"] += stage.fleet.send(worker, Signals.SIGSTOP)
    try:
        await pause(rng.uniform(0.5, 6))
    finally:
        stage.fleet.send(worker, Signals.SIGCONT)


async def standby(stage: Stage, rng: Random) -> None:
    """Let a second worker stand by, and take over from one that is killed or drained."""
    async with stage.fleet.kept():
        await pause(rng.uniform(1, 3))
        oldest = stage.fleet.workers[0] if stage.fleet.workers else None
        number = rng.choice([Signals.SIGKILL, Signals.SIGTERM])
        stage.injected["standby"] += stage.fleet.send(oldest, number)
        await pause(rng.uniform(1, 4))


async def cut(stage: Stage, rng: Random) -> None:
    """Close every connection of the worker."""
    for _ in range(rng.randrange(1, 5)):
        stage.injected["cut"] += 1
        stage.proxy.cut()
        await pause(rng.uniform(0.1, 1.5))


async def reset(stage: Stage, rng: Random) -> None:
    """Reset every connection."""
    for _ in range(rng.randrange(1, 5)):
        stage.injected["reset"] += 1
        stage.proxy.reset()
        await pause(rng.uniform(0.1, 1.5))


async def stall(stage: Stage, rng: Random) -> None:
    """Hold up all traffic, one way or both, for less than it takes to be noticed."""
    await _stall(stage, rng, "stall", rng.uniform(0.5, 8))


async def long_stall(stage: Stage, rng: Random) -> None:
    """Hold up all traffic for longer than three heartbeats."""
    await _stall(stage, rng, "long_stall", rng.uniform(34, 42))


async def _stall(stage: Stage, rng: Random, name: str, seconds: float) -> None:
    stage.injected[name] += 1
    stage.proxy.stall(*rng.choice([(), (Way.TO_BROKER,), (Way.TO_WORKER,)]))
    try:
        await pause(seconds)
    finally:
        stage.proxy.flow()


async def unacked(stage: Stage, rng: Random) -> None:
    """Close the connections between a commit and its ack, so that the ack does not arrive."""
    before = stage.proxy.swallowed
    stage.proxy.swallows = BASIC_ACK
    try:
        with suppress(AssertionError):
            await eventually(lambda: stage.proxy.swallowed > before, ACK_SECONDS)
            stage.injected["unacked"] += 1
        await pause(rng.uniform(0, BATCH_SECONDS))
    finally:
        stage.proxy.swallows = None
        stage.proxy.cut()


async def hang_up(stage: Stage, rng: Random) -> None:
    """Close every connection, and for a while every new one as soon as it opens."""
    stage.injected["hang_up"] += 1
    stage.proxy.hangs_up = True
    try:
        stage.proxy.cut()
        await pause(rng.uniform(0.5, 4))
    finally:
        stage.proxy.hangs_up = False


async def close(stage: Stage, rng: Random) -> None:
    """Let the broker close every connection, including the publisher's."""
    await pause(rng.uniform(0, 1))
    stage.injected["close"] += 1
    await stage.ctl("close_all_connections", "chaos")


async def restart(stage: Stage, rng: Random) -> None:
    """Stop the broker and start it again."""
    stage.injected["restart"] += 1
    try:
        await stage.node.stop()
        await pause(rng.uniform(0, 3))
    finally:
        await stage.node.start()


async def crash(stage: Stage, rng: Random) -> None:
    """Kill the broker and start it again."""
    stage.injected["crash"] += 1
    try:
        await stage.node.kill()
        await pause(rng.uniform(0, 3))
    finally:
        await stage.node.start()


async def alarm(stage: Stage, rng: Random) -> None:
    """Raise the broker's memory alarm, which stops it from reading from publishers."""
    stage.injected["alarm"] += 1
    try:
        await stage.ctl("set_vm_memory_high_watermark", "0.000001")
        await pause(rng.uniform(2, 8))
    finally:
        await stage.ctl("set_vm_memory_high_watermark", str(WATERMARK))


async def lock(stage: Stage, rng: Random) -> None:
    """Let another process hold the file's write lock."""
    stage.injected["lock"] += 1
    seconds = str(rng.uniform(0.5, 5))
    locker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LOCKER, str(stage.database), seconds),
        stdin=DEVNULL,
        stderr=DEVNULL,
        start_new_session=True,
    )
    try:
        await locker.wait()
    finally:
        if locker.returncode is None:
            locker.kill()


async def full(stage: Stage, rng: Random) -> None:
    """Let each write of a worker beyond the first page of a file fail, as on a full disk."""
    stage.injected["full"] += 1
    worker = rng.choice(await eventually(lambda: stage.fleet.workers))
    # The worker may end at any moment, and its limits with it.
    with suppress(ProcessLookupError):
        _, hard = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (FULL_BYTES, hard))
        try:
            await pause(rng.uniform(0.5, 5))
        finally:
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (hard, hard))


async def sync(stage: Stage, rng: Random) -> None:
    """Start a worker whose nth fsync fails."""
    stage.fleet.inside = (
        *("strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={SYNC}"),
        *("-e", f"inject={SYNC}:error=EIO:when={rng.randrange(2, 30)}"),
    )
    stage.injected["sync"] += stage.fleet.send(stage.fleet.any(rng), Signals.SIGKILL)
    await pause(rng.uniform(4, 8))
    # Tracing is slow. If this worker still runs, the next one runs without it.
    stage.fleet.send(stage.fleet.any(rng), Signals.SIGTERM)


async def poison(stage: Stage, rng: Random) -> None:
    """Publish a message that kills every worker, until the broker dead-letters it."""
    stage.injected["poison"] += 1
    stage.traffic.poison()
    await pause(rng.uniform(1, 20))


class Fault(NamedTuple):
    """A fault, and what the choice of faults needs to know of it."""

    happens: Callable[[Stage, Random], Awaitable[None]]
    to: str
    """What it acts on; simultaneous faults act on different things."""
    weight: int
    is_usual: bool = True
    """Whether it is chosen by default."""
    longest: float = 0
    """In seconds; a fault is not chosen if it would take more than a tenth of the run."""


FAULTS = {
    "kill": Fault(kill, "workers", 8),
    "terminate": Fault(terminate, "a worker", 3),
    "freeze": Fault(freeze, "a worker", 3),
    "standby": Fault(standby, "a worker", 3),
    "sync": Fault(sync, "a worker", 2),
    "cut": Fault(cut, "network", 3),
    "reset": Fault(reset, "network", 3),
    "stall": Fault(stall, "network", 3),
    "long_stall": Fault(long_stall, "network", 1, longest=45),
    "unacked": Fault(unacked, "network", 4),
    "hang_up": Fault(hang_up, "network", 2),
    "close": Fault(close, "broker", 2),
    "restart": Fault(restart, "broker", 1),
    "crash": Fault(crash, "broker", 1),
    "alarm": Fault(alarm, "broker", 2),
    # Twenty workers die of it, and nothing else is projected until then.
    "poison": Fault(poison, "messages", 1, is_usual=False),
    "lock": Fault(lock, "file", 3),
    "full": Fault(full, "file", 3),
}
