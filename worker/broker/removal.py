"""Removes queues that get no more messages, and only if they have none left."""

from collections.abc import Sequence
from dataclasses import dataclass

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity

from worker.broker.topology import Binding
from worker.errors import BrokerRefused

# A message on its way from one consumer to the next is neither waiting nor unacked for a moment,
# and so is one that the broker itself is dead-lettering. So each look is confirmed by another.
LOOK_SECONDS = 1.0
LOOKS = 2


@dataclass(frozen=True, slots=True)
class Left:
    """What queues still have, in sum."""

    messages: int
    """How many messages wait for workers."""
    consumed: int
    """How many of the queues have a consumer, or unacked messages."""


async def exists(connection: AbstractConnection, queue: str) -> bool:
    """Return whether there is a queue of this name."""
    # The broker closes the channel if there is none.
    async with connection.channel() as channel:
        try:
            await channel.declare_queue(queue, passive=True)
        except ChannelNotFoundEntity:
            return False
    return True


async def look(channel: AbstractChannel, queues: Sequence[str]) -> Left:
    """Return what the queues still have."""
    messages = consumed = 0
    for name in queues:
        found = (await channel.declare_queue(name, passive=True)).declaration_result
        messages += found.message_count or 0
        # It also counts a consumer that has ended and whose messages are unacked
        # (rabbit_fifo.erl, `query_stat`).
        consumed += bool(found.consumer_count)
    return Left(messages, consumed)


async def unbind(channel: AbstractChannel, binding: Binding) -> None:
    """Remove a binding, unless it is gone."""
    if binding.to_exchange:
        exchange = await channel.get_exchange(binding.destination, ensure=False)
        await exchange.unbind(binding.exchange, binding.routing_key)
    else:
        queue = await channel.get_queue(binding.destination, ensure=False)
        await queue.unbind(binding.exchange, binding.routing_key)


async def delete_empty(channel: AbstractChannel, name: str, inflow: Binding) -> None:
    """Delete a queue that gets its messages through this binding, which is removed first.

    It was empty a moment ago, but somebody may have bound it again: the broker has no condition for
    the deletion of a quorum queue. Raises `BrokerRefused`, and deletes nothing, if it has messages
    or a consumer.
    """
    await unbind(channel, inflow)
    left = await look(channel, [name])
    if left.messages or left.consumed:
        raise BrokerRefused(
            f"Queue {name!r} has messages or a consumer again; it was not deleted.",
            "see that nobody else binds it, and run this command again.",
        )
    await channel.queue_delete(name)
