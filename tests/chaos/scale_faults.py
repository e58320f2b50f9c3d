"""What happens where many workers share the messages: they come and go, and so do partitions."""

from random import Random
from signal import Signals

from tests.chaos.moments import pause
from tests.chaos.postgres_stage import PostgresStage
from tests.chaos.stage import Fault
from tests.waiting import patience

MOST_WORKERS = 5
MOST_PARTITIONS = 12
# Longer than workers take to empty the queues that a resize gives up, unless something is wrong.
COMMAND_SECONDS = 30


async def scale(stage: PostgresStage, rng: Random) -> None:
    """Let workers join or leave."""
    sizes = [size for size in range(1, MOST_WORKERS + 1) if size != stage.fleet.size]
    size = rng.choice(sizes)
    stage.injected["join" if size > stage.fleet.size else "leave"] += 1
    await stage.fleet.become(size)
    await pause(rng.uniform(0, 3))


async def long_freeze(stage: PostgresStage, rng: Random) -> None:
    """Freeze a worker for longer than the broker waits for its heartbeats."""
    worker = stage.fleet.any(rng)
    stage.injected["long_freeze"] += stage.fleet.send(worker, Signals.SIGSTOP)
    try:
        await pause(rng.uniform(34, 42))
    finally:
        stage.fleet.send(worker, Signals.SIGCONT)


async def resize(stage: PostgresStage, rng: Random) -> None:
    """Change the number of partitions; sometimes kill the command that does it."""
    stage.injected["resize"] += 1
    partitions = rng.choice([n for n in range(1, MOST_PARTITIONS + 1) if n != stage.partitions])
    stage.partitions = partitions
    await stage.attempt(_patience(rng), "topology", "resize", str(partitions))


async def rebuild(stage: PostgresStage, rng: Random) -> None:
    """Rebuild the tables while workers write; sometimes kill the command that does it."""
    stage.injected["rebuild"] += 1
    await stage.attempt(_patience(rng), "rebuild")


def _patience(rng: Random) -> float:
    """Return after how many seconds a command is killed."""
    return rng.uniform(0.5, 3) if rng.random() < 0.3 else patience(COMMAND_SECONDS)


SCALE_FAULTS: dict[str, Fault[PostgresStage]] = {
    "scale": Fault(scale, "number of workers", 4),
    "long_freeze": Fault(long_freeze, "a worker", 1, longest=45),
    "resize": Fault(resize, "partitions", 4),
    "rebuild": Fault(rebuild, "tables", 3),
}
