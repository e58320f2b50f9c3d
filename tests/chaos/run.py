"""One run: a node, a worker behind a proxy, a publisher and a nemesis, and then the verdict."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from signal import Signals

from tests.chaos.ending import (
    Findings,
    by_reason,
    command,
    differ,
    digest,
    left_in,
    some,
    take_all,
    until_drained,
)
from tests.chaos.faults import Stage
from tests.chaos.fleet import Fleet
from tests.chaos.footprint import free_port, growth_after_cuts, metrics, words_in
from tests.chaos.ledger import Ledger
from tests.chaos.moments import pause
from tests.chaos.nemesis import steps, torment
from tests.chaos.publisher import Publisher
from tests.chaos.traffic import MAX_MESSAGE_BYTES, Traffic
from tests.chaos.verdict import Check, Verdict
from tests.chaos.witness import appended, install
from tests.database import query
from tests.processes import environment
from tests.proxy import Proxy
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode

USER, CANARY = "projection", "S3CR3T-canary"
# If it is killed within seconds of a quorum queue's declaration, RabbitMQ 3.10 may never elect a
# leader for it again.
WARM_SECONDS = 15
CALM_CUTS = 10
# Success; failed, or not drained in time; a second SIGTERM; tests/deadly.py; SIGKILL; SIGTERM
# before the worker handles it.
KNOWN_CODES = (0, 1, 128 + Signals.SIGTERM, 66, -Signals.SIGKILL, -Signals.SIGTERM)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a run."""

    seed: int
    seconds: float
    faults: Sequence[str]
    prefetch: int
    batch_size: int


async def run(plan: Plan, node: RabbitMQNode, folder: Path, say: Say) -> Verdict:
    """Run everything in the folder, on a running node; return the verdict."""
    begin = time.monotonic()
    queues = Queues(node.url)
    database = folder / "projection.db"
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(node.port))
        await proxy.listen()
        ledger = stack.enter_context(Ledger(folder / "ledger.jsonl"))
        fleet = Fleet(await _settings(plan, node, proxy, queues, database), folder)
        await _prepare(fleet, database)
        fleet.module = "tests.deadly" if "poison" in plan.faults else "worker"
        rng = Random(plan.seed)
        traffic = Traffic(rng, partial(_is_in_log, database))
        stage = Stage(node, proxy, fleet, traffic, database)
        publisher = Publisher(queues.url, queues.exchange, ledger, traffic, rng)

        def tell(line: str) -> None:
            behind = len(ledger.confirmed) - appended(database)
            say(f"{line} ({behind:,} more confirmed than in the log)")

        async with fleet.kept():
            async with _publishing(publisher):
                await pause(min(WARM_SECONDS, plan.seconds))
                plan_of_faults = steps(plan.seed, plan.faults)
                await torment(stage, plan_of_faults, plan.seconds - WARM_SECONDS, tell)
            tell("Waiting until the queue is drained")
            left = await until_drained(node, queues)
        checks = [Check("the queue is drained", left)]
        checks += [check async for check in _last_worker(stage, queues, plan)]
        dead, queued = [await take_all(queues, n) for n in (queues.dead_letters, queues.name)]
        say("Comparing")
        findings = Findings(database, ledger, dead, queued)
        checks += findings.checks()
        checks += [check async for check in _rebuilds(fleet, database, folder)]
        checks += _sayings(fleet, database)
        return Verdict(
            seed=plan.seed,
            seconds=time.monotonic() - begin,
            counts=findings.counts(),
            checks=checks,
            injected=stage.injected,
            happened={
                "publishes, copies included": ledger.publishes,
                "connections of the publisher": publisher.connections,
                "connections of workers": proxy.connections,
                "redelivered": proxy.redelivered,
                "duplicates, as workers reported": fleet.verdicts["duplicate"],
                "late, as workers reported": fleet.verdicts["late"],
                "workers started": fleet.starts,
                **by_reason(dead),
                **{f"workers said {word}": number for word, number in fleet.changes.items()},
            },
            exit_codes=fleet.exit_codes,
            failures=fleet.failures,
        )


async def _settings(
    plan: Plan, node: RabbitMQNode, proxy: Proxy, queues: Queues, database: Path
) -> dict[str, str]:
    """Create the worker's user, and return the environment of a worker."""
    await node.ctl("add_user", USER, CANARY)
    await node.ctl("set_permissions", "-p", "/", USER, ".*", ".*", ".*")
    settings = queues.settings | {
        "amqp_url": proxy.url.replace("guest:guest", f"{USER}:{CANARY}"),
        "database": database,
        "secrets_dir": database.parent,
        "prefetch": plan.prefetch,
        "batch_size": plan.batch_size,
        "max_message_bytes": MAX_MESSAGE_BYTES,
    }
    return environment(**settings)


async def _prepare(fleet: Fleet, database: Path) -> None:
    """Let a first worker create the queue and the file."""
    async with fleet.worker() as worker:
        await worker.wait_for_log("connected")
        fleet.send(worker, Signals.SIGTERM)
        await worker.exit_code()
    install(database)


def _is_in_log(database: Path, event_id: str, message_id: str) -> bool:
    # Both consist of letters, digits and dashes.
    where = f"event_id = '{event_id}' AND id = '{message_id}'"
    return bool(query(database, f"SELECT 1 FROM messages WHERE {where}"))


@asynccontextmanager
async def _publishing(publisher: Publisher) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        group.create_task(publisher.run())
        yield
        publisher.finish()


async def _last_worker(stage: Stage, queues: Queues, plan: Plan) -> AsyncIterator[Check]:
    """Run a worker without faults except cuts, and end it."""
    cuts = CALM_CUTS if plan.seconds > 300 else CALM_CUTS // 2
    port = free_port()
    fleet, folder = stage.fleet, stage.database.parent
    async with fleet.worker(WORKER_HEALTH_PORT=str(port)) as worker:
        yield Check(
            f"a worker holds no more after {cuts} cuts than before",
            await growth_after_cuts(worker, stage.proxy, cuts),
        )
        (folder / "metrics").write_bytes(await metrics(port))
        fleet.send(worker, Signals.SIGTERM)
        yield Check("it ends with exit code 0", differ(await worker.exit_code(), 0))
    yield Check("no message is ready or unacked", await left_in(stage.node, queues))


async def _rebuilds(fleet: Fleet, database: Path, folder: Path) -> AsyncIterator[Check]:
    before = digest(database)
    exit_code, output = await command(fleet, folder, "rebuild", "--verify")
    yield Check("`rebuild --verify` finds the same rows", output if exit_code else "")
    exit_code, output = await command(fleet, folder, "rebuild")
    yield Check("`rebuild` succeeds", output if exit_code else "")
    yield Check("the rows are the same after it", differ(digest(database), before))


def _sayings(fleet: Fleet, database: Path) -> list[Check]:
    crashes = {code: n for code, n in fleet.exit_codes.items() if code not in KNOWN_CODES}
    return [
        Check("workers print log lines, and no traceback", some(iter(fleet.foreign))),
        Check("no worker ends with an unknown exit code", str(crashes) if crashes else ""),
        Check(
            "the broker's password is in no log line, metric or file",
            ", ".join(words_in(fleet, database, CANARY)),
        ),
    ]
