"""One run: a stage, a publisher and a nemesis, and then the verdict."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from signal import Signals
from typing import Generic

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
    work_queues,
)
from tests.chaos.engine import Engine, S, Setting
from tests.chaos.footprint import free_port, growth_after_cuts, metrics, secrets_in
from tests.chaos.ledger import Ledger
from tests.chaos.moments import pause
from tests.chaos.nemesis import torment
from tests.chaos.publisher import Publisher
from tests.chaos.stage import Stage
from tests.chaos.traffic import MAX_MESSAGE_BYTES
from tests.chaos.verdict import Check, Verdict
from tests.rabbitmq import RabbitMQNode

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


async def run(plan: Plan, engine: Engine[S], node: RabbitMQNode, folder: Path, say: Say) -> Verdict:
    """Run everything in the folder, on a running node; return the verdict."""
    rng = Random(plan.seed)
    options = {
        "prefetch": plan.prefetch,
        "batch_size": plan.batch_size,
        "max_message_bytes": MAX_MESSAGE_BYTES,
    }
    async with AsyncExitStack() as stack:
        ledger = stack.enter_context(Ledger(folder / "ledger.jsonl"))
        setting = Setting(node, folder, ledger, rng, options)
        stage = await stack.enter_async_context(engine.staged(setting))
        return await _Run(plan, engine, stage, rng, say).verdict()


class _Run(Generic[S]):
    def __init__(self, plan: Plan, engine: Engine[S], stage: S, rng: Random, say: Say) -> None:
        self._plan = plan
        self._faults = {name: engine.faults[name] for name in plan.faults}
        self._stage = stage
        self._say = say
        queues = stage.queues
        self._publisher = Publisher(queues.url, queues.exchange, stage.ledger, stage.traffic, rng)

    async def verdict(self) -> Verdict:
        """Let it all happen, and check everything."""
        begin = time.monotonic()
        stage, fleet = self._stage, self._stage.fleet
        await _prepare(stage)
        fleet.module = "tests.deadly" if "poison" in self._plan.faults else "worker"
        async with fleet:
            await fleet.become(stage.workers)
            async with _publishing(self._publisher):
                await pause(min(WARM_SECONDS, self._plan.seconds))
                seconds = self._plan.seconds - WARM_SECONDS
                await torment(stage, self._faults, self._plan.seed, seconds, self._tell)
            await self._tell("Waiting until all queues are drained")
            left = await until_drained(stage.node, stage.queues)
            checks = [Check("all queues are drained", left)]
            checks += await stage.healed()
        checks += [check async for check in _last_worker(stage, self._cuts)]
        self._say("Comparing")
        findings = await _findings(stage)
        checks += findings.checks()
        checks += [check async for check in _rebuilds(stage)]
        checks += await stage.ended()
        checks += _sayings(stage)
        return Verdict(
            seed=self._plan.seed,
            seconds=time.monotonic() - begin,
            counts=findings.counts(),
            checks=checks,
            injected=stage.injected,
            happened=self._happened() | by_reason(findings.dead),
            exit_codes=fleet.exit_codes,
            failures=fleet.failures,
        )

    async def _tell(self, line: str) -> None:
        stage = self._stage
        behind = len(stage.ledger.confirmed) - await stage.witness.appended()
        self._say(f"{line} ({behind:,} more confirmed than in the log)")

    @property
    def _cuts(self) -> int:
        return CALM_CUTS if self._plan.seconds > 300 else CALM_CUTS // 2

    def _happened(self) -> dict[str, int]:
        stage, fleet = self._stage, self._stage.fleet
        return {
            "publishes, copies included": stage.ledger.publishes,
            "connections of the publisher": self._publisher.connections,
            "connections of workers": sum(proxy.connections for proxy in stage.proxies),
            "redelivered": sum(proxy.redelivered for proxy in stage.proxies),
            "duplicates, as workers reported": fleet.verdicts["duplicate"],
            "late, as workers reported": fleet.verdicts["late"],
            "workers started": fleet.starts,
            **{f"workers said {word}": number for word, number in fleet.changes.items()},
            **stage.counted(),
        }


async def _prepare(stage: Stage) -> None:
    """Let a first worker create the queues and the tables."""
    async with stage.fleet.worker() as worker:
        await worker.wait_for_log("connected")
        stage.fleet.send(worker, Signals.SIGTERM)
        await worker.exit_code()
    await stage.witness.install()


@asynccontextmanager
async def _publishing(publisher: Publisher) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        group.create_task(publisher.run())
        yield
        publisher.finish()


async def _last_worker(stage: Stage, cuts: int) -> AsyncIterator[Check]:
    """Run a worker without faults except cuts, and end it."""
    port = free_port()
    async with stage.fleet.worker(WORKER_HEALTH_PORT=str(port)) as worker:
        yield Check(
            f"a worker holds no more after {cuts} cuts than before",
            await growth_after_cuts(worker, stage.proxies[0], cuts),
        )
        (stage.folder / "metrics").write_bytes(await metrics(port))
        stage.fleet.send(worker, Signals.SIGTERM)
        yield Check("it ends with exit code 0", differ(await worker.exit_code(), 0))
    yield Check("no message is ready or unacked", await left_in(stage.node, stage.queues))


async def _findings(stage: Stage) -> Findings:
    dead = await take_all(stage.queues, stage.queues.dead_letters)
    queued = [
        letter
        for name in await work_queues(stage.node, stage.queues)
        for letter in await take_all(stage.queues, name)
    ]
    return await Findings.of(stage.witness, stage.ledger, dead, queued)


async def _rebuilds(stage: Stage) -> AsyncIterator[Check]:
    fleet, folder = stage.fleet, stage.folder
    before = await digest(stage.witness)
    exit_code, output = await command(fleet, folder, "rebuild", "--verify")
    yield Check("`rebuild --verify` finds the same rows", output if exit_code else "")
    exit_code, output = await command(fleet, folder, "rebuild")
    yield Check("`rebuild` succeeds", output if exit_code else "")
    yield Check("the rows are the same after it", differ(await digest(stage.witness), before))


def _sayings(stage: Stage) -> list[Check]:
    fleet = stage.fleet
    crashes = {code: n for code, n in fleet.exit_codes.items() if code not in KNOWN_CODES}
    return [
        Check("workers print log lines, and no traceback", some(iter(fleet.foreign))),
        Check("no worker ends with an unknown exit code", str(crashes) if crashes else ""),
        Check(
            "no password is in a log line, metric or file",
            ", ".join(secrets_in(fleet, stage.folder, stage.secrets)),
        ),
    ]
