"""The stage with SQLite: one worker, its file, and the faults of that file."""

import asyncio
import resource
import shutil
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from signal import Signals

from tests.chaos.broker_user import broker_user
from tests.chaos.engine import Engine, Setting
from tests.chaos.faults import COMMON
from tests.chaos.fleet import Fleet
from tests.chaos.moments import pause
from tests.chaos.stage import Fault, Stage
from tests.chaos.traffic import Traffic
from tests.chaos.witness import FileWitness
from tests.processes import environment
from tests.proxy import Proxy
from tests.queues import Queues
from tests.strace import SYNC
from tests.waiting import eventually

# The size of one SQLite page; every write beyond it fails.
FULL_BYTES = 4_096
LOCKER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("BEGIN IMMEDIATE")
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


@dataclass(kw_only=True)
class FileStage(Stage):
    """A stage whose workers take turns on one file."""

    database: Path


@asynccontextmanager
async def staged(setting: Setting) -> AsyncIterator[FileStage]:
    """Hold a stage whose worker has not started yet."""
    node, folder = setting.node, setting.folder
    queues = Queues(node.url)
    database = folder / "projection.db"
    witness = FileWitness(database)
    user = await broker_user(node)
    async with Proxy(node.port) as proxy:
        await proxy.listen()
        settings = queues.settings | {
            "amqp_url": user.url_through(proxy),
            "database": database,
            "secrets_dir": folder,
        }
        yield FileStage(
            folder=folder,
            node=node,
            queues=queues,
            proxies=(proxy,),
            fleet=Fleet(environment(**settings, **setting.options), folder),
            workers=1,
            ledger=setting.ledger,
            traffic=Traffic(setting.rng, witness.is_in_log),
            witness=witness,
            secrets=(user.password,),
            database=database,
        )


async def standby(stage: FileStage, rng: Random) -> None:
    """Let a second worker stand by, and take over from one that is killed or drained."""
    async with stage.fleet.one_more():
        await pause(rng.uniform(1, 3))
        oldest = stage.fleet.workers[0] if stage.fleet.workers else None
        number = rng.choice([Signals.SIGKILL, Signals.SIGTERM])
        stage.injected["standby"] += stage.fleet.send(oldest, number)
        await pause(rng.uniform(1, 4))


async def lock(stage: FileStage, rng: Random) -> None:
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


async def full(stage: FileStage, rng: Random) -> None:
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


async def sync(stage: FileStage, rng: Random) -> None:
    """Start a worker whose nth fsync fails."""
    stage.fleet.inside = (
        *("strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={SYNC}"),
        *("-e", f"inject={SYNC}:error=EIO:when={rng.randrange(2, 30)}"),
    )
    stage.injected["sync"] += stage.fleet.send(stage.fleet.any(rng), Signals.SIGKILL)
    await pause(rng.uniform(4, 8))
    # Tracing is slow. If this worker still runs, the next one runs without it.
    stage.fleet.send(stage.fleet.any(rng), Signals.SIGTERM)


def has_strace() -> bool:
    return shutil.which("strace") is not None


SQLITE = Engine(
    staged,
    {
        **COMMON,
        "standby": Fault(standby, "a worker", 3),
        "sync": Fault(sync, "a worker", 2, needs=has_strace),
        "lock": Fault(lock, "file", 3),
        "full": Fault(full, "file", 3),
    },
    # All of them come once, even in a short run.
    seconds_each=1,
)
