"""A lock, so that only one command at a time does what two would spoil.

Two commands that read dead letters would each see some of them, and return them in another order.
Of two that change the queues, one would delete what the other has just bound. The lock is an
exclusive queue, which only one connection can declare. The broker deletes it when that connection
ends, for whatever reason (rabbitmq.com/docs/queues, "Exclusive Queues").
"""

from aio_pika.abc import AbstractConnection, AbstractQueue
from aiormq.exceptions import ChannelLockedResource

from worker.errors import BrokerRefused


def lock_of(name: str) -> str:
    """Return the name of the queue that locks a queue, or all partitions."""
    return f"{name}.lock"


async def acquire(connection: AbstractConnection, name: str, held: str) -> AbstractQueue:
    """Lock what has this name for a connection.

    Raises `BrokerRefused` if another connection holds the lock; `held` is a clause that says so.
    Raises `ChannelAccessRefused`, the library's error, if the user may not configure the lock.
    """
    channel = await connection.channel()
    try:
        return await channel.declare_queue(
            lock_of(name), exclusive=True, arguments={"x-queue-type": "classic"}
        )
    except ChannelLockedResource as error:
        raise BrokerRefused(
            f"Another command {held}; nothing was changed.",
            "run this command again when that one has ended. If it was killed, the broker releases "
            "its lock at once; if its machine or network failed, within a minute.",
        ) from error


async def release(lock: AbstractQueue) -> None:
    """Let the next command have the lock."""
    await lock.delete(if_unused=False, if_empty=False)
