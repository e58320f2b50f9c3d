"""The faults that every run has: on the workers, their network, the broker and the messages.

Each one causes a failure, lets it last, and undoes it, however it is ended.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from signal import Signals

from tests.chaos.moments import pause
from tests.chaos.network import Network
from tests.chaos.stage import Fault, Stage
from tests.proxy import BASIC_ACK
from tests.relay import Relay
from tests.waiting import POLL_SECONDS

# A worker starts and commits its first batch in less, unless something else is wrong, too.
COMMIT_SECONDS = 2.5
# Longer than the kills of a simultaneous fault take.
ACK_SECONDS = 15.0
# The time from the commit of a batch to its ack, and to the next commit.
BATCH_SECONDS = 0.03
WATERMARK = 0.4


async def kill(stage: Stage, rng: Random) -> None:
    """Kill workers at any time after their start, or around a commit."""
    for _ in range(rng.randrange(4, 9)):
        if rng.random() < 0.4:
            await pause(rng.uniform(0, 1))
        else:
            # A worker begins with one message, in case it is deadly; later batches are full.
            await _until_appended(stage, rng.choice([1, 2, 100, 500, 1_000]))
            await pause(rng.uniform(0, BATCH_SECONDS))
        # Sometimes several at once, as when a machine goes down.
        for worker in stage.fleet.some(rng, rng.choice([1, 1, 2, 3])):
            stage.injected["kill"] += stage.fleet.send(worker, Signals.SIGKILL)


async def _until_appended(stage: Stage, messages: int) -> None:
    """Wait until this many more messages are committed, but not for long."""
    wanted = await stage.witness.progress() + messages

    # By the clock, so that there are as many kills on a crowded machine.
    with suppress(TimeoutError):
        async with asyncio.timeout(COMMIT_SECONDS):
            while await stage.witness.progress() < wanted:
                await pause(POLL_SECONDS)


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


async def unacked(stage: Stage, rng: Random) -> None:
    """Close connections between a commit and its ack, so that the ack does not arrive."""
    proxy = rng.choice(stage.proxies)
    before = proxy.swallowed
    proxy.swallows = BASIC_ACK
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(ACK_SECONDS):
                while proxy.swallowed == before:
                    await pause(POLL_SECONDS)
            stage.injected["unacked"] += 1
        await pause(rng.uniform(0, BATCH_SECONDS))
    finally:
        proxy.swallows = None
        proxy.cut()


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


async def poison(stage: Stage, rng: Random) -> None:
    """Publish a message that kills every worker, until the broker dead-letters it."""
    stage.injected["poison"] += 1
    stage.traffic.poison()
    await pause(rng.uniform(1, 20))


def proxies_of(stage: Stage) -> Sequence[Relay]:
    """Return the ways to the broker."""
    return stage.proxies


COMMON: dict[str, Fault[Stage]] = {
    "kill": Fault(kill, "workers", 8),
    "terminate": Fault(terminate, "a worker", 3),
    "freeze": Fault(freeze, "a worker", 3),
    **Network("", proxies_of).faults("network"),
    "unacked": Fault(unacked, "network", 4),
    "close": Fault(close, "broker", 2),
    "restart": Fault(restart, "broker", 1),
    "crash": Fault(crash, "broker", 1),
    "alarm": Fault(alarm, "broker", 2),
    # Twenty workers die of it, and nothing else is projected until then.
    "poison": Fault(poison, "messages", 1, is_usual=False),
}
