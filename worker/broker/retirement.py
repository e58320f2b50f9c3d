"""Removes what a reader has left that has moved between one queue and partitions.

While it moves, the exchange of the chats feeds both, so that either could go on alone. Promise: the
new ones get all messages before the old ones get no more, and the old ones are deleted only when
they are empty and nobody consumes from them. Each step may be repeated after an interruption.
"""

import asyncio
from dataclasses import replace
from itertools import count

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity

from worker.broker.partitions import queue_of
from worker.broker.removal import (
    LOOK_SECONDS,
    LOOKS,
    Left,
    delete_empty,
    exists,
    look,
    unbind,
)
from worker.broker.topology import Topology, bind
from worker.errors import BrokerRefused
from worker.plurals import counted


async def old_topology(connection: AbstractConnection, topology: Topology) -> Topology | None:
    """Return what the reader has left for this topology; None if there is nothing of it."""
    if topology.partitions is not None:
        old = replace(topology, partitions=None)
        return old if await exists(connection, old.queue) else None
    for number in count():
        if not await exists(connection, queue_of(topology.queue, number)):
            break
    return replace(topology, partitions=number) if number else None


async def retire(connection: AbstractConnection, topology: Topology, old: Topology) -> None:
    """Feed the topology alone, and delete the old one, but for the dead letters, which stay.

    Raises `BrokerRefused` while the old queues have messages or consumers: nothing is deleted then.
    """
    async with connection.channel() as channel:
        try:
            await bind(channel, topology.bindings[-1])
        except ChannelNotFoundEntity as error:
            raise BrokerRefused(
                f"What should get the messages from now on is missing on the broker ({error}).",
                "create it with 'projection-worker topology apply', and start a worker on it.",
            ) from error
        inflow = old.bindings[-1]
        await unbind(channel, inflow)
        for _ in range(LOOKS):
            _require_empty(old, await look(channel, old.work_queues))
            await asyncio.sleep(LOOK_SECONDS)
        # The last one first, so that those that an interruption leaves are found.
        for name in reversed(old.work_queues):
            await delete_empty(channel, name, inflow)
        if old.partitions is not None:
            await channel.exchange_delete(old.queue)
        await channel.exchange_delete(old.claimed.exchange)


def _require_empty(old: Topology, left: Left) -> None:
    if not left.messages and not left.consumed:
        return
    left_over = [counted(left.messages, "message")] if left.messages else []
    left_over += ["a worker"] if left.consumed else []
    what = f"queue {old.queue!r}" if old.partitions is None else "the old partitions"
    raise BrokerRefused(
        f"The inflow of {what} is stopped; {' and '.join(left_over)} must go before the deletion.",
        "let the old worker empty it ('projection-worker check' with its settings counts what "
        "waits) and stop it, import its log once more, and run this command again.",
    )
