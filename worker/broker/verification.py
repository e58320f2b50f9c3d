"""Verifies that the broker has everything as the topology says, and counts what waits there."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from worker.broker.partitions import queue_of
from worker.broker.permissions import Questions
from worker.broker.topology import Topology, bind
from worker.errors import BrokerRefused
from worker.plurals import counted

T = TypeVar("T")

# Each channel has one question under way. 64 questions take 19 ms on a node of the same machine
# with any number of channels; with eight, they take 8 times the way to a distant one, and not 64.
MAX_CHANNELS = 8
QUEUES_PER_CHANNEL = 4


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification that found no fault in what the user may see."""

    queue: int | None
    """How many messages wait for workers, in all partitions; None if the user may not see it."""
    dead_letters: int | None
    """How many dead letters wait; None if the user may not see it."""
    not_permitted: tuple[str, ...] = ()
    """What could not be verified, because the user lacks the permission."""
    partitions: tuple[int | None, ...] = ()
    """How many messages wait in each partition; empty if there is one queue."""
    has_surplus: bool = False
    """Whether there is a queue, though empty, beyond the partitions; False if that was not asked.
    """

    @property
    def waiting(self) -> str:
        """Return how many messages wait, in words."""
        queue, dead_letters = (
            f"an unknown number of {noun}s" if count is None else counted(count, noun)
            for count, noun in ((self.queue, "message"), (self.dead_letters, "dead letter"))
        )
        return f"{queue} and {dead_letters} wait"


async def verify(
    topology: Topology,
    connection: AbstractConnection,
    *,
    binds: bool = False,
    consumes: bool = False,
    beyond: bool = False,
    not_permitted: Iterable[str] = (),
) -> Verification:
    """Verify that everything exists as declared; creates no exchange and no queue.

    Bindings cannot be verified, because no client can list them. The one of the dead letters is
    restored. `binds` also creates those through which messages arrive, for a first start only:
    later, that would silently undo what an operator did to stop the inflow. `consumes` leaves out
    the one question to which the broker may answer by closing the connection: whether it knows the
    exchange type of partitions. `beyond` also asks for a queue beyond the partitions, which is a
    fault if messages wait in it; the broker logs an error if there is none. `not_permitted` lists
    what the user may not see, from an earlier verification. Raises `BrokerRefused` for what is
    missing or differs.
    """
    verifying = _Verifying(topology, connection, list(not_permitted))
    async with verifying:
        try:
            waiting = await verifying.look()
            await verifying.compare(consumes=consumes)
            await verifying.bind(all_bindings=binds)
            has_surplus = beyond and await _has_surplus(topology, connection)
        except ChannelNotFoundEntity as error:
            raise BrokerRefused(
                f"An exchange or queue of the worker is missing on the broker ({error}).",
                "create it with 'projection-worker topology apply'. Messages published "
                "meanwhile may be lost: ask the publishers to publish them again.",
            ) from error
        except ChannelPreconditionFailed as error:
            raise topology.differs(error) from error
    work = [waiting[name] for name in topology.work_queues]
    seen = [count for count in work if count is not None]
    return Verification(
        sum(seen) if len(seen) == len(work) else None,
        waiting[topology.dead_letters],
        tuple(dict.fromkeys(verifying.not_permitted)),
        () if topology.partitions is None else tuple(work),
        has_surplus,
    )


async def _has_surplus(topology: Topology, connection: AbstractConnection) -> bool:
    """Return whether the first queue beyond the partitions exists; raise if messages wait in it.

    A resize has some that are empty. Any other is one of an `apply` with another number.
    """
    partitions = topology.partitions
    if partitions is None:
        return False
    name = queue_of(topology.queue, partitions)
    async with Questions(connection) as questions:
        try:
            waiting = await questions.ask(_queue(name), find_queue, name)
        except ChannelNotFoundEntity:
            return False
    if waiting:
        raise BrokerRefused(
            f"Queue {name!r} exists and has {counted(waiting, 'message')}, but the database says "
            f"{counted(partitions, 'partition')}: no worker consumes from it.",
            f"run 'projection-worker topology resize {partitions}': workers empty it, and it is "
            "deleted; or with the number of partitions that you want.",
        )
    return waiting is not None


async def missing(topology: Topology, connection: AbstractConnection) -> list[str]:
    """Return the exchanges and queues that do not exist, as far as the user may see that."""
    found = []
    async with Questions(connection) as questions:
        for name in topology.exchanges:
            try:
                await questions.ask(_exchange(name), _find_exchange, name)
            except ChannelNotFoundEntity:
                found.append(_exchange(name))
        for name in topology.queues:
            try:
                await questions.ask(_queue(name), find_queue, name)
            except ChannelNotFoundEntity:
                found.append(_queue(name))
    return found


async def find_queue(channel: AbstractChannel, name: str) -> int:
    """Return how many messages wait in a queue."""
    queue = await channel.declare_queue(name, passive=True)
    return queue.declaration_result.message_count or 0


class _Verifying:
    """The steps of a verification, each on several channels; for use with `async with`."""

    def __init__(
        self, topology: Topology, connection: AbstractConnection, not_permitted: list[str]
    ) -> None:
        self._topology = topology
        self.not_permitted = not_permitted
        channels = min(MAX_CHANNELS, -(-len(topology.queues) // QUEUES_PER_CHANNEL))
        # They add to one list what the user may not see.
        self._askers = [Questions(connection, not_permitted) for _ in range(channels)]
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> None:
        for asker in self._askers:
            await self._stack.enter_async_context(asker)

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def look(self) -> dict[str, int | None]:
        """Return how many messages wait in each queue; raises if something does not exist."""
        for name in self._topology.exchanges:
            await self._askers[0].ask(_exchange(name), _find_exchange, name)

        async def count(questions: Questions, name: str) -> tuple[str, int | None]:
            return name, await questions.ask(_queue(name), find_queue, name)

        return dict(await self._each(self._topology.queues, count))

    async def compare(self, *, consumes: bool) -> None:
        """Declare what exists, which the broker refuses if the arguments differ."""
        topology = self._topology
        for name, kind in topology.exchanges.items():
            if consumes and kind is ExchangeType.X_MODULUS_HASH:
                continue
            # Declaring one that the user may not see could create it.
            if _exchange(name) not in self.not_permitted:
                subject = f"the type of {_exchange(name)}"
                await self._askers[0].ask(subject, topology.declare_exchange, name)

        async def declare(questions: Questions, name: str) -> None:
            if _queue(name) not in self.not_permitted:
                subject = f"the arguments of {_queue(name)}"
                await questions.ask(subject, topology.declare_queue, name)

        await self._each(topology.queues, declare)

    async def bind(self, *, all_bindings: bool) -> None:
        for binding in self._topology.bindings:
            if all_bindings or binding.exchange == self._topology.dead_letters:
                what = _exchange if binding.to_exchange else _queue
                subject = (
                    f"the binding of {what(binding.destination)} to exchange {binding.exchange!r}"
                )
                await self._askers[0].ask(subject, bind, binding)

    async def _each(
        self, names: Iterable[str], ask: Callable[[Questions, str], Coroutine[Any, Any, T]]
    ) -> list[T]:
        """Ask about each of the names; raises the first error once all channels have stopped."""
        shares = [list(names)[place :: len(self._askers)] for place in range(len(self._askers))]

        async def about(asker: Questions, share: Sequence[str]) -> list[T]:
            return [await ask(asker, name) for name in share]

        answers = await asyncio.gather(*map(about, self._askers, shares), return_exceptions=True)
        found: list[T] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            found += answer
        return found


def _exchange(name: str) -> str:
    return f"exchange {name!r}"


def _queue(name: str) -> str:
    return f"queue {name!r}"


async def _find_exchange(channel: AbstractChannel, name: str) -> None:
    await channel.get_exchange(name, ensure=True)
