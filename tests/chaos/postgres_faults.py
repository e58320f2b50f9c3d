"""The faults of PostgreSQL: its nodes, its sessions, its locks, and the network to it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from signal import Signals

import asyncpg

from tests.chaos.moments import pause
from tests.chaos.network import Network
from tests.chaos.pair import AWAY
from tests.chaos.postgres_stage import PostgresStage
from tests.chaos.stage import Fault
from tests.disk import cannot_mount, fill
from tests.relay import Relay
from tests.waiting import LOOK_SECONDS, eventually

FILLER = "filler"
WORKERS = """
    SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'projection-worker%' ORDER BY pid
"""
ENDINGS = ("pg_terminate_backend", "pg_cancel_backend")
# Whatever a person at psql may lock. The last is what a rebuild locks while it puts its tables in
# place.
LOCKS = (
    "SELECT FROM projection.streams WHERE hashtext(event_id) % 10 = 0 ORDER BY event_id FOR UPDATE",
    "LOCK TABLE projection.streams IN SHARE MODE",
    "LOCK TABLE projection.log IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE projection.events IN EXCLUSIVE MODE",
    "LOCK TABLE projection.projections IN ACCESS EXCLUSIVE MODE",
)


async def database_crash(stage: PostgresStage, rng: Random) -> None:
    """Kill the primary with all its processes, and start it again."""
    stage.injected["database_crash"] += 1
    primary = stage.pair.primary
    try:
        await primary.kill()
        await pause(rng.uniform(0, 3))
    finally:
        await primary.start()


async def database_restart(stage: PostgresStage, rng: Random) -> None:
    """Stop the primary as an operator does, gently or not, and start it again."""
    stage.injected["database_restart"] += 1
    primary = stage.pair.primary
    try:
        await primary.stop(rng.choice([Signals.SIGINT, Signals.SIGQUIT]))
        await pause(rng.uniform(0, 3))
    finally:
        await primary.start()


async def database_freeze(stage: PostgresStage, rng: Random) -> None:
    """Freeze the primary, whose connections stay open."""
    stage.injected["database_freeze"] += 1
    stage.pair.primary.freeze()
    try:
        await pause(rng.uniform(0.5, 8))
    finally:
        stage.pair.primary.thaw()


async def database_full(stage: PostgresStage, rng: Random) -> None:
    """Fill the primary's disk; if the server gives up, start it again once there is room."""
    stage.injected["database_full"] += 1
    primary = stage.pair.primary
    filler = primary.data / FILLER
    try:
        await asyncio.to_thread(fill, filler)
        await pause(rng.uniform(1, 6))
    finally:
        filler.unlink()
        await _revive(stage)


async def _revive(stage: PostgresStage) -> None:
    """Wait until the primary has recovered; start it again if it has given up."""

    async def is_well() -> bool:
        if not stage.pair.primary.is_running:
            stage.injected["database_full, which ended the server"] += 1
            await stage.pair.primary.kill()
            await stage.pair.primary.start()
        with suppress(*AWAY):
            await stage.query("SELECT")
            return True
        return False

    await eventually(is_well, every=LOOK_SECONDS)


async def promote(stage: PostgresStage, rng: Random) -> None:
    """Let the standby take the place of a primary that is killed, or cut off and killed later."""
    stage.injected["promote"] += 1
    primary = stage.pair.primary
    if rng.random() < 0.5:
        await primary.kill()
        await pause(rng.uniform(0, 3))
        await stage.pair.standby.promote()
    else:
        # It comes to life again as a second primary, whose commits wait for a standby in vain.
        primary.freeze()
        await stage.pair.standby.promote()
        primary.thaw()
        await pause(rng.uniform(0, 3))
    await stage.pair.succeed()


async def standby_crash(stage: PostgresStage, rng: Random) -> None:
    """Kill the standby, so that every commit waits until it is there again."""
    stage.injected["standby_crash"] += 1
    try:
        await stage.pair.standby.kill()
        await pause(rng.uniform(0.5, 5))
    finally:
        await stage.pair.standby.start()


async def sessions(stage: PostgresStage, rng: Random) -> None:
    """End sessions of workers, or cancel what they do."""
    for _ in range(rng.randrange(2, 6)):
        ending = rng.choice(ENDINGS)
        with suppress(*AWAY):
            found = [pid for (pid,) in await stage.query(WORKERS)]
            for pid in rng.sample(found, min(len(found), rng.randint(1, 4))):
                await stage.query(f"SELECT {ending}($1)", pid)
                stage.injected[ending] += 1
        await pause(rng.uniform(0, 1))


async def database_lock(stage: PostgresStage, rng: Random) -> None:
    """Let somebody else hold rows or a whole table, for less or more than workers wait."""
    statement = rng.choice(LOCKS)
    with suppress(*AWAY):
        async with _transaction(stage) as connection:
            await connection.execute(statement)
            stage.injected["database_lock"] += 1
            await pause(rng.uniform(0.5, 8))


@asynccontextmanager
async def _transaction(stage: PostgresStage) -> AsyncIterator[asyncpg.Connection]:
    primary = stage.pair.primary
    connection = await asyncpg.connect(
        host=str(primary.folder),
        port=primary.port,
        user="postgres",
        database=stage.database_name,
        server_settings={"lock_timeout": "10s"},
    )
    try:
        async with connection.transaction():
            yield connection
    finally:
        connection.terminate()


def relays_of(stage: PostgresStage) -> Sequence[Relay]:
    """Return the ways to the database."""
    return stage.pair.relays


def can_fill() -> bool:
    """Return whether there is a disk to fill."""
    return cannot_mount("--mount") is None


POSTGRES_FAULTS: dict[str, Fault[PostgresStage]] = {
    **Network("database_", relays_of).faults("network to the database"),
    "sessions": Fault(sessions, "sessions", 3),
    "database_lock": Fault(database_lock, "locks", 3),
    "database_crash": Fault(database_crash, "database", 3),
    "database_restart": Fault(database_restart, "database", 2),
    "database_freeze": Fault(database_freeze, "database", 2),
    "database_full": Fault(database_full, "database", 2, needs=can_fill),
    "standby_crash": Fault(standby_crash, "database", 2),
    "promote": Fault(promote, "database", 2),
}
