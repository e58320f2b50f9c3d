"""The broker requests of `check` and `topology`, each on its own connection.

All functions raise `BrokerRefused` if the broker refuses, and `SessionLost` if it cannot be reached
or does not answer in time.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aio_pika.abc import AbstractConnection

from worker.broker import claim, command_lock, retirement, verification
from worker.broker import resize as resizing
from worker.broker.claim import Claimed
from worker.broker.connection import (
    BrokerAddress,
    answer_within,
    connection,
    loss_raised_as,
    version_of,
)
from worker.broker.permissions import requiring
from worker.broker.resize import Progress, Write
from worker.broker.topology import Topology
from worker.broker.verification import Verification
from worker.errors import SessionLost

T = TypeVar("T")

Current = Callable[[], Awaitable[Topology]]
"""Reads the topology, with the number of partitions that workers know."""

NAME = "projection-worker check"
# A quorum queue is declared within seconds, unless its cluster has no majority.
ANSWER_SECONDS = 30


async def reach(address: BrokerAddress) -> str:
    """Connect to the broker, and return its version, such as 4.3.6; empty if it does not say."""
    async with _asking(address) as opened:
        return version_of(opened)


async def require_known_types(address: BrokerAddress, topology: Topology) -> None:
    """Raise `BrokerRefused` if the broker lacks a type of exchange; creates nothing."""

    async def ask() -> None:
        async with _asking(address) as opened, opened.channel() as channel:
            await topology.require_known_types(channel)

    await _answer(ask())


async def verify(address: BrokerAddress, topology: Topology) -> Verification:
    """Verify that the worker's exchanges and queues exist as declared; raises if not."""

    async def ask() -> Verification:
        async with _asking(address) as opened:
            return await verification.verify(topology, opened, beyond=True)

    return await _answer(ask())


async def apply(address: BrokerAddress, current: Current) -> list[str]:
    """Create what is missing of the topology; return the exchanges and queues that were created.

    Raises `BrokerRefused` for an exchange or queue that exists with other arguments, and if another
    command changes the queues.
    """

    async def ask() -> list[str]:
        async with _changing(address, current, "make the exchanges and queues") as held:
            opened, topology = held
            missing = await verification.missing(topology, opened)
            async with opened.channel() as channel:
                await topology.apply(channel)
            return missing

    return await _answer(ask())


async def resize(
    address: BrokerAddress, current: Current, partitions: int, write: Write, progress: Progress
) -> None:
    """Change the number of partitions; see `resize.resize`. It takes as long as workers need.

    Raises `BrokerRefused` if another command changes the queues.
    """
    async with _changing(address, current, "change the exchanges and queues") as (opened, topology):
        await resizing.resize(opened, topology, partitions, write, progress)


async def owner(address: BrokerAddress, claimed: Claimed, own_id: str | None) -> str | None:
    """Return and raise what `claim.owner` does."""

    async def ask() -> str | None:
        async with _asking(address) as opened:
            return await claim.owner(opened, claimed, own_id)

    return await _answer(ask())


async def release(address: BrokerAddress, claimed: Claimed) -> None:
    """Let another database claim the queue; raises `BrokerRefused` while a worker consumes."""

    async def ask() -> None:
        async with _asking(address) as opened:
            await claim.release(opened, claimed)

    await _answer(ask())


async def old_topology(address: BrokerAddress, topology: Topology) -> Topology | None:
    """Return what `retirement.old_topology` does."""

    async def ask() -> Topology | None:
        async with _asking(address) as opened:
            return await retirement.old_topology(opened, topology)

    return await _answer(ask())


async def retire(address: BrokerAddress, current: Current) -> Topology | None:
    """Feed the topology alone, and delete the old one; return what was deleted, None if nothing.

    Raises what `retirement.retire` does, and `BrokerRefused` if another command changes the queues.
    """
    to_remove = "remove the old queues"

    async def ask() -> Topology | None:
        async with _changing(address, current, to_remove) as (opened, topology):
            old = await retirement.old_topology(opened, topology)
            if old is not None:
                with requiring(old.needed_to_apply, address, to_remove):
                    await retirement.retire(opened, topology, old)
            return old

    return await _answer(ask())


@asynccontextmanager
async def _changing(
    address: BrokerAddress, current: Current, to: str
) -> AsyncIterator[tuple[AbstractConnection, Topology]]:
    """Hold a connection, and the topology as it is while no other command can change it."""
    topology = await current()
    async with _asking(address) as opened:
        with requiring(topology.needed_to_apply, address, to):
            lock = await command_lock.acquire(opened, topology.queue, "changes the worker's queues")
            # It may have changed while another command had the lock.
            yield opened, await current()
            await command_lock.release(lock)


@asynccontextmanager
async def _asking(address: BrokerAddress) -> AsyncIterator[AbstractConnection]:
    with loss_raised_as(_ended):
        async with connection(address, NAME) as opened:
            yield opened


async def _answer(work: Coroutine[Any, Any, T]) -> T:
    return await answer_within(work, ANSWER_SECONDS)


def _ended(reason: str) -> SessionLost:
    return SessionLost(
        f"The connection to the broker ended before it answered ({reason}).",
        "run the command again; if that does not help, see RabbitMQ's log.",
    )
