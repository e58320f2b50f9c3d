"""A lock, so that only one command at a time holds the dead letters.

Two commands at once would each see some of the letters, and return them in another order. The lock
is an exclusive queue, which only one connection can declare. The broker deletes it when that
connection ends, for whatever reason (rabbitmq.com/docs/queues, "Exclusive Queues").
"""

from aio_pika.abc import AbstractConnection, AbstractQueue
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

from worker.errors import BrokerRefused


def lock_of(queue: str) -> str:
    """Return the name of the queue that locks a dead-letter queue."""
    return f"{queue}.lock"


async def acquire(connection: AbstractConnection, queue: str) -> AbstractQueue | None:
    """Lock a dead-letter queue for a connection.

    Returns None if the user may not configure the lock. Raises `BrokerRefused` if another
    connection holds it.
    """
    channel = await connection.channel()
    try:
        return await channel.declare_queue(
            lock_of(queue), exclusive=True, arguments={"x-queue-type": "classic"}
        )
    except ChannelAccessRefused:
        return None
    except ChannelLockedResource as error:
        raise BrokerRefused(
            f"Another command holds the dead letters in queue {queue!r}; nothing was changed.",
            "run this command again when that one has ended. If it was killed, the broker releases "
            "them at once; if its machine or network failed, within a minute.",
        ) from error


async def release(lock: AbstractQueue) -> None:
    """Let the next command lock the dead-letter queue."""
    await lock.delete(if_unused=False, if_empty=False)
