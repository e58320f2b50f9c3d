"""Which database a queue belongs to: one queue, or one set of partitions, one database.

A second worker with another database would fold some of the queue's messages into an empty log. So
a worker claims the queue for its database before it consumes, and the broker refuses all others.

RabbitMQ keeps each exchange on every node, and creates it once, however many clients declare it at
the same time. It refuses a second declaration with a different alternate exchange, which is the
only argument that it compares (rabbit_exchange.erl, `assert_args_equivalence`). So the claim is an
exchange whose alternate exchange names the database. The claim is internal, so that nobody can
publish to it, and its alternate exchange is never created. Both names begin with the queue's name,
so that permissions granted by that prefix cover them.
"""

import re
from dataclasses import dataclass

from aio_pika import ExchangeType
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused

from worker.errors import BrokerRefused

ALTERNATE_EXCHANGE = "alternate-exchange"
# How RabbitMQ 3.10 and 4.3 refuse the declaration if the exchange exists, and if it does not.
_IS_ANOTHER = re.compile(rf"inequivalent arg '{ALTERNATE_EXCHANGE}'")
_IS_MISSING = re.compile(rf"invalid type '\w+' for arg '{ALTERNATE_EXCHANGE}'")
# A reply has at most 255 bytes, so a long queue name leaves no room for this at its end.
_CURRENT = re.compile(r"but current is '(.+)'$")
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Claimant:
    """The database for which a worker claims its queue."""

    shown: str
    """What people call it: its path or URL, without a password."""
    id: str
    """Unique to the database; a copy has the same id."""
    is_new: bool
    """Whether nothing has been projected into it, and no session has been opened for it."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """What belongs to one database: a queue, or the queues of all partitions.

    Both may exist for the same chats while their reader moves from the one to the other, each with
    a claim of its own.
    """

    queue: str
    """The name of the queue, or that with which the queues of all partitions begin."""
    work_queues: tuple[str, ...]
    exchange: str
    """The exchange that says to which database they belong."""


class QueueClaimed(BrokerRefused):
    """The queue belongs to another database."""


class ClaimNotPermitted(BrokerRefused):
    """The broker's user may neither claim the queue nor see which database it belongs to."""


def exchange_of(queue: str, *, has_partitions: bool = False) -> str:
    """Return the name of the exchange that says which database a queue belongs to."""
    return f"{queue}.partitions" if has_partitions else f"{queue}.database"


async def make(
    connection: AbstractConnection, claimed: Claimed, claimant: Claimant
) -> ClaimNotPermitted | None:
    """Claim the queue for a database, or verify that the database still has the claim.

    Returns the reason if the user lacks the permission; the worker then runs without a claim.
    Raises `QueueClaimed` if the queue belongs to another one, and `BrokerRefused` if the exchange
    is not a claim.
    """
    try:
        if await _declare(connection, claimed, claimant.id) == claimant.id:
            return None
    except ClaimNotPermitted as error:
        return error
    # Declaring it without an identity leaves more room in the reply for the other one.
    other = await _declare(connection, claimed, None)
    raise claimed_by_another(claimed.queue, other or UNKNOWN, claimant.shown, claimant.id)


async def owner(connection: AbstractConnection, claimed: Claimed, own_id: str | None) -> str | None:
    """Return the identity of the database that the queue belongs to, or None; changes nothing.

    Returns `UNKNOWN` if the broker does not name the identity, and it is not `own_id`. Raises
    `ClaimNotPermitted`, and `BrokerRefused` if the exchange is not a claim.
    """
    # An alternate exchange cannot be void, so the broker always refuses this, and says why.
    found = await _declare(connection, claimed, None)
    if found == UNKNOWN and own_id is not None:
        return await _declare(connection, claimed, own_id)
    return found


async def release(connection: AbstractConnection, claimed: Claimed) -> None:
    """Let the next worker that starts claim the queue for its own database.

    Raises `BrokerRefused` while somebody consumes, and what `owner` raises.
    """
    for queue in claimed.work_queues:
        if await _is_consumed(connection, queue):
            raise BrokerRefused(
                f"A worker consumes from queue {queue!r}, or the broker has not noticed that it "
                "ended.",
                "stop the worker first: until then it writes to the old database.",
            )
    if await owner(connection, claimed, None) is not None:
        async with connection.channel() as channel:
            await channel.exchange_delete(claimed.exchange)


def claimed_by_another(queue: str, owner: str, shown: str, own_id: str | None) -> QueueClaimed:
    """Return the error for another database than the queue's; `own_id` is None if it is missing."""
    this = f"its identity is {own_id}" if own_id else "which does not exist yet"
    return QueueClaimed(
        f"Queue {queue!r} belongs to another database (identity {owner}) than {shown} ({this}).",
        "set WORKER_DATABASE to the database that the queue belongs to, or restore it; 'sqlite3 "
        'FILE "SELECT id FROM file"\' prints the identity of a file, and \'psql URL -c "SELECT id '
        "FROM projection.store\"' that of a schema. To use this one instead, without the other "
        "one's messages, stop the other worker and run 'projection-worker topology release'.",
    )


async def _declare(
    connection: AbstractConnection, claimed: Claimed, own_id: str | None
) -> str | None:
    """Declare the claim, and return the identity that it names."""
    name = claimed.exchange
    async with connection.channel() as channel:
        try:
            await channel.declare_exchange(
                name,
                ExchangeType.FANOUT,
                durable=True,
                internal=True,
                arguments={ALTERNATE_EXCHANGE: own_id and f"{name}.{own_id}"},
            )
        except ChannelPreconditionFailed as error:
            return _owner_in(error, name)
        except ChannelAccessRefused as error:
            raise ClaimNotPermitted(
                f"The broker's user may not claim queue {claimed.queue!r} for a database "
                f"({error}).",
                "until it may, a worker with another database is not refused. Grant the user "
                f"configure and read on exchange {name!r}, and write on all names that begin with "
                f"'{name}.' (docs/operate.md, 'Permissions', has the rabbitmqctl command).",
            ) from error
    return own_id


def _owner_in(error: ChannelPreconditionFailed, name: str) -> str | None:
    if _IS_ANOTHER.search(str(error)):
        found = _CURRENT.search(str(error))
        return found[1].removeprefix(f"{name}.") if found else UNKNOWN
    if _IS_MISSING.search(str(error)):
        return None
    raise BrokerRefused(
        f"Exchange {name!r}, which should name the queue's database, was not declared by a "
        f"worker ({error}).",
        "delete it if nobody needs it, or set WORKER_QUEUE to another name.",
    ) from error


async def _is_consumed(connection: AbstractConnection, queue: str) -> bool:
    async with connection.channel() as channel:
        try:
            declared = await channel.declare_queue(queue, passive=True)
        except ChannelNotFoundEntity:
            return False
    return bool(declared.declaration_result.consumer_count)
