"""What can go wrong. Each fault does it, lets it last, and undoes it, however it is ended."""

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
from tests.rabbitmq import NodeFailed, RabbitMQNode
from tests.strace import SYNC
from tests.waiting import eventually

# A worker starts and commits its first batch in less, unless something else is wrong, too.
COMMIT_SECONDS = 1.8
# Longer than the kills of another fault at the same time take.
ACK_SECONDS = 15.0
# From the commit of a batch to its ack, and to the next commit.
BATCH_SECONDS = 0.03
# A page of SQLite's; every write behind it fails.
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
    """What faults are done to."""

    node: RabbitMQNode
    proxy: Proxy
    fleet: Fleet
    traffic: Traffic
    database: Path
    injected: Counter[str] = field(default_factory=Counter)

    async def ctl(self, *arguments: str) -> None:
        """Tell the broker something, which it does not hear while it is down."""
        with suppress(NodeFailed):
            await self.node.ctl(*arguments)


async def kill(stage: Stage, rng: Random) -> None:
    """Kill workers: at any moment since their start, or right around a commit."""
    for _ in range(rng.randrange(3, 7)):
        if rng.random() < 0.4:
            await pause(rng.uniform(0, 1))
        else:
            # A worker begins with one message, to see whether it is deadly; later batches are full.
            await _until_appended(stage, rng.choice([1, 2, 100, 500, 1_000]))
            await pause(rng.uniform(0, BATCH_SECONDS))
        stage.injected["kill"] += stage.fleet.send(stage.fleet.any(rng), Signals.SIGKILL)


async def _until_appended(stage: Stage, messages: int) -> None:
    """Wait until so many more messages are committed, but not for long."""
    wanted = appended(stage.database) + messages
    with suppress(AssertionError):
        await eventually(lambda: appended(stage.database) >= wanted, COMMIT_SECONDS)


async def terminate(stage: Stage, rng: Random) -> None:
    """Ask workers to end, now and then twice."""
    for _ in range(rng.randrange(1, 4)):
        worker = stage.fleet.any(rng)
        stage.injected["terminate"] += stage.fleet.send(worker, Signals.SIGTERM)
        if rng.random() < 0.3:
            await pause(rng.uniform(0, 0.1))
            stage.fleet.send(worker, Signals.SIGTERM)
        await pause(rng.uniform(0.5, 3))


async def freeze(stage: Stage, rng: Random) -> None:
    """Stop a worker for some seconds, as a machine without memory does."""
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
    """End every connection of the worker."""
    for _ in range(rng.randrange(1, 5)):
        stage.injected["cut"] += 1
        stage.proxy.cut()
        await pause(rng.uniform(0.1, 1.5))


async def reset(stage: Stage, rng: Random) -> None:
    """End every connection with a reset."""
    for _ in range(rng.randrange(1, 5)):
        stage.injected["reset"] += 1
        stage.proxy.reset()
        await pause(rng.uniform(0.1, 1.5))


async def stall(stage: Stage, rng: Random) -> None:
    """Hold everything up, one way or both, for less than it takes to be noticed."""
    await _stall(stage, rng, "stall", rng.uniform(0.5, 8))


async def long_stall(stage: Stage, rng: Random) -> None:
    """Hold everything up for longer than three heartbeats."""
    await _stall(stage, rng, "long_stall", rng.uniform(34, 42))


async def _stall(stage: Stage, rng: Random, name: str, seconds: float) -> None:
    stage.injected[name] += 1
    stage.proxy.stall(*rng.choice([(), (Way.TO_BROKER,), (Way.TO_WORKER,)]))
    try:
        await pause(seconds)
    finally:
        stage.proxy.flow()


async def unacked(stage: Stage, rng: Random) -> None:
    """End the connections between a commit and its ack: the ack does not arrive."""
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
    """End every connection, and for a while every new one as soon as it is there."""
    stage.injected["hang_up"] += 1
    stage.proxy.hangs_up = True
    try:
        stage.proxy.cut()
        await pause(rng.uniform(0.5, 4))
    finally:
        stage.proxy.hangs_up = False


async def close(stage: Stage, rng: Random) -> None:
    """Let the broker close every connection, the publisher's included."""
    await pause(rng.uniform(0, 1))
    stage.injected["close"] += 1
    await stage.ctl("close_all_connections", "chaos")


async def restart(stage: Stage, rng: Random) -> None:
    """Shut the broker down and start it again."""
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
    """Let the broker find that it has no memory: it stops reading from who publishes."""
    stage.injected["alarm"] += 1
    try:
        await stage.ctl("set_vm_memory_high_watermark", "0.000001")
        await pause(rng.uniform(2, 8))
    finally:
        await stage.ctl("set_vm_memory_high_watermark", str(WATERMARK))


async def lock(stage: Stage, rng: Random) -> None:
    """Let another process hold the write lock of the file."""
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
    """Let every write of a worker behind the first page of a file fail, as on a full disk."""
    stage.injected["full"] += 1
    worker = rng.choice(await eventually(lambda: stage.fleet.workers))
    # It may end at any moment, and take its limits along.
    with suppress(ProcessLookupError):
        _, hard = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (FULL_BYTES, hard))
        try:
            await pause(rng.uniform(0.5, 5))
        finally:
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (hard, hard))


async def sync(stage: Stage, rng: Random) -> None:
    """Start a worker one of whose fsyncs fails."""
    stage.fleet.inside = (
        *("strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={SYNC}"),
        *("-e", f"inject={SYNC}:error=EIO:when={rng.randrange(2, 30)}"),
    )
    stage.injected["sync"] += stage.fleet.send(stage.fleet.any(rng), Signals.SIGKILL)
    await pause(rng.uniform(4, 8))
    # Slow, if it still runs: the next one is traced by nobody.
    stage.fleet.send(stage.fleet.any(rng), Signals.SIGTERM)


async def poison(stage: Stage, rng: Random) -> None:
    """Publish a message of which every worker dies, until the broker takes it out."""
    stage.injected["poison"] += 1
    stage.traffic.poison()
    await pause(rng.uniform(1, 20))


class Fault(NamedTuple):
    """A fault, and what must be known to choose it."""

    happens: Callable[[Stage, Random], Awaitable[None]]
    to: str
    """Two at a time are done to different things."""
    weight: int
    is_usual: bool = True
    """Whether it is chosen without being asked for."""
    longest: float = 0
    """Seconds; not chosen for a run in which it would take more than a tenth of the time."""


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
