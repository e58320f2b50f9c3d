"""Changes the number of partitions while workers run.

Keys move to other queues; that is harmless, because no row depends on who consumes what. Promise:
at every moment each queue with messages is one of the partitions that workers are told to consume
from, and a queue is deleted only when the broker has no message of it left, not even an unacked
one. Each step may be repeated, so that after an interruption the same command goes on.

How to see unacked messages without RabbitMQ's management plugin: a passive declaration counts only
those that nobody has. But of a queue with a single active consumer it counts the active consumer,
and those that were cancelled and have unacked messages (rabbit_fifo.erl, `query_stat`). So the
workers are told to leave an empty queue, and when it counts no consumer, nothing is unacked.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import count

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from worker.broker.partitions import queue_of
from worker.broker.removal import LOOK_SECONDS, LOOKS, delete_empty, exists, look, unbind
from worker.broker.topology import Binding, Topology, bind
from worker.broker.verification import find_queue
from worker.errors import BrokerRefused
from worker.plurals import counted

Write = Callable[[int], Awaitable[None]]
"""Writes the number of partitions to where all workers read it, and returns when it is there."""
Progress = Callable[[str], None]
"""Called with a sentence about each step, and each change during a wait."""


async def resize(
    connection: AbstractConnection,
    topology: Topology,
    partitions: int,
    write: Write,
    progress: Progress,
) -> None:
    """Change the number of partitions; `topology` has the number that workers know.

    Returns when all surplus queues are deleted, which takes as long as workers need to drain them:
    without any worker, for ever. Raises `BrokerRefused` if an exchange is missing.
    """
    resizing = _Resizing(connection, replace(topology, partitions=partitions), write, progress)
    await resizing.grow(topology.partitions or 0)
    await resizing.shrink(topology.partitions or 0)


class _Resizing:
    """The steps of one change."""

    def __init__(
        self,
        connection: AbstractConnection,
        wanted: Topology,
        write: Write,
        progress: Progress,
    ) -> None:
        self._connection = connection
        self._wanted = wanted
        self._partitions = len(wanted.work_queues)
        self._write = write
        self._progress = progress

    async def grow(self, known: int) -> None:
        """Declare what is missing, tell the workers, and only then let messages in."""
        async with self._connection.channel() as channel:
            try:
                for queue in self._wanted.work_queues:
                    await self._wanted.declare_queue(channel, queue)
            except ChannelPreconditionFailed as error:
                raise self._wanted.differs(error) from error
            if known < self._partitions:
                self._progress(f"{_that(self._partitions, 'exists', 'exist')}.")
                await self._tell(self._partitions)
            try:
                for binding in self._wanted.bindings:
                    if binding.exchange == self._wanted.queue:
                        await bind(channel, binding)
            except ChannelNotFoundEntity as error:
                raise BrokerRefused(
                    f"An exchange of the worker is missing on the broker ({error}).",
                    "create it with 'projection-worker topology apply'.",
                ) from error
        if known < self._partitions:
            self._progress("Messages are spread over all of them.")

    async def shrink(self, known: int) -> None:
        """Stop the inflow of the surplus queues, drain them, let the workers leave, and delete."""
        numbers = await self._surplus(known)
        if not numbers:
            if known > self._partitions:
                await self._tell(self._partitions)
            return
        surplus = [queue_of(self._wanted.queue, number) for number in numbers]
        async with self._connection.channel() as channel:
            for name in surplus:
                await unbind(channel, self._inflow(name))
            self._progress(f"{_that(len(surplus), 'gets', 'get')} no more messages.")
            told = known
            while (ready := await self._settled(channel, surplus, told)) or told > self._partitions:
                # Those that a worker lost after it was told to leave need consumers again.
                told = numbers[-1] + 1 if ready else self._partitions
                await self._tell(told)
            await self._require_dead_letters(channel)
            # The last one first, so that those that are left after an interruption are found.
            for name in reversed(surplus):
                await delete_empty(channel, name, self._inflow(name))
        self._progress(f"{counted(len(surplus), 'queue')} deleted.")

    async def _surplus(self, known: int) -> list[int]:
        """Return the numbers of the queues behind the wanted ones; an interruption leaves some."""
        found: list[int] = []
        for number in count(self._partitions):
            if await exists(self._connection, queue_of(self._wanted.queue, number)):
                found.append(number)
            elif number >= known:
                break
        return found

    async def _settled(self, channel: AbstractChannel, surplus: Sequence[str], told: int) -> int:
        """Wait until the queues are as they should be; return how many messages wait in them then.

        While workers are told to consume from them, they should be empty. Otherwise nobody should
        consume, whether they are empty or not.
        """
        reported = None
        looks = 0
        while looks < LOOKS:
            left = await look(channel, surplus)
            is_settled = not (left.messages if told > self._partitions else left.consumed)
            looks = looks + 1 if is_settled else 0
            if not is_settled and left != reported:
                self._progress(
                    f"Waiting for workers: {counted(left.messages, 'message')} left, "
                    f"{counted(left.consumed, 'queue')} still consumed."
                )
                reported = left
            await asyncio.sleep(LOOK_SECONDS)
        return left.messages

    async def _require_dead_letters(self, channel: AbstractChannel) -> None:
        """Let the broker finish what it dead-letters by itself: no client can count that."""
        (binding,) = (b for b in self._wanted.bindings if b.exchange == self._wanted.dead_letters)
        await bind(channel, binding)
        await find_queue(channel, self._wanted.dead_letters)
        await asyncio.sleep(LOOK_SECONDS)

    def _inflow(self, queue: str) -> Binding:
        return Binding(self._wanted.queue, queue, "")

    async def _tell(self, partitions: int) -> None:
        await self._write(partitions)
        self._progress(f"Workers are told to consume from {counted(partitions, 'partition')}.")


def _that(queues: int, verb: str, plural_verb: str) -> str:
    """Return how many queues do something."""
    return f"{counted(queues, 'queue')} {verb if queues == 1 else plural_verb}"
