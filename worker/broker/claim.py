"""Which database file a queue belongs to: one queue, one file.

A second worker with a file of its own would fold some of the queue's messages into an empty log. So
a worker claims the queue for its file before it consumes, and the broker refuses every other file.

RabbitMQ keeps each exchange on every node, and creates it once, however many clients declare it at
the same time. It refuses a second declaration with a different alternate exchange, which is the
only argument that it compares (rabbit_exchange.erl, `assert_args_equivalence`). So the claim is an
exchange whose alternate exchange names the file. The claim is internal, so that nobody can publish
to it, and its alternate exchange is never created. Both names begin with the queue's name, so that
permissions granted by that prefix cover them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
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
class DatabaseFile:
    """The file for which a worker claims its queue."""

    path: Path
    id: str
    """Unique to the file; a copy has the same id."""
    is_new: bool
    """Whether nothing has been projected into it, and no session has been opened for it."""


class QueueClaimed(BrokerRefused):
    """The queue belongs to another database file."""


class ClaimNotPermitted(BrokerRefused):
    """The broker's user may neither claim the queue nor see which file it belongs to."""


def exchange_of(queue: str) -> str:
    """Return the name of the exchange that says which file a queue belongs to."""
    return f"{queue}.database"


async def make(
    connection: AbstractConnection, queue: str, file: DatabaseFile
) -> ClaimNotPermitted | None:
    """Claim the queue for a file, or verify that the file still has the claim.

    Returns the reason if the user lacks the permission; the worker then runs without a claim.
    Raises `QueueClaimed` if the queue belongs to another file, and `BrokerRefused` if the exchange
    is not a claim.
    """
    try:
        if await _declare(connection, queue, file.id) == file.id:
            return None
    except ClaimNotPermitted as error:
        return error
    # Declaring it without an identity leaves more room in the reply for the other file's.
    other = await _declare(connection, queue, None)
    raise claimed_by_another(queue, other or UNKNOWN, file.path, file.id)


async def owner(connection: AbstractConnection, queue: str, file_id: str | None) -> str | None:
    """Return the identity of the file that the queue belongs to, or None; changes nothing.

    Returns `UNKNOWN` if the broker does not name the identity, and it is not `file_id`. Raises
    `ClaimNotPermitted`, and `BrokerRefused` if the exchange is not a claim.
    """
    # An alternate exchange cannot be void, so the broker always refuses this, and says why.
    found = await _declare(connection, queue, None)
    if found == UNKNOWN and file_id is not None:
        return await _declare(connection, queue, file_id)
    return found


async def release(connection: AbstractConnection, queue: str) -> None:
    """Let the next worker that starts claim the queue for its own file.

    Raises `BrokerRefused` while somebody consumes, and what `owner` raises.
    """
    async with connection.channel() as channel:
        if await _is_consumed(channel, queue):
            raise BrokerRefused(
                f"A worker consumes from queue {queue!r}, or the broker has not noticed that it "
                "ended.",
                "stop the worker first: until then it writes to the old file.",
            )
    if await owner(connection, queue, None) is not None:
        async with connection.channel() as channel:
            await channel.exchange_delete(exchange_of(queue))


def claimed_by_another(queue: str, owner: str, path: Path, file_id: str | None) -> QueueClaimed:
    """Return the error for another file than the queue's; `file_id` is None if it is missing."""
    this = f"its identity is {file_id}" if file_id else "which does not exist yet"
    return QueueClaimed(
        f"Queue {queue!r} belongs to another database file (identity {owner}) than {path} "
        f"({this}).",
        "set WORKER_DATABASE to the file that the queue belongs to, or restore it; 'sqlite3 FILE "
        '"SELECT id FROM file"\' prints the identity of a file. To use this file instead, without '
        "the other file's messages, stop the other worker and run 'projection-worker topology "
        "release'.",
    )


async def _declare(connection: AbstractConnection, queue: str, file_id: str | None) -> str | None:
    """Declare the claim, and return the identity that it names."""
    name = exchange_of(queue)
    async with connection.channel() as channel:
        try:
            await channel.declare_exchange(
                name,
                ExchangeType.FANOUT,
                durable=True,
                internal=True,
                arguments={ALTERNATE_EXCHANGE: file_id and f"{name}.{file_id}"},
            )
        except ChannelPreconditionFailed as error:
            return _owner_in(error, name)
        except ChannelAccessRefused as error:
            raise ClaimNotPermitted(
                f"The broker's user may not claim queue {queue!r} for a database file ({error}).",
                "until it may, a second worker with another file is not refused. Grant the user "
                f"configure and read on exchange {name!r}, and write on all names that begin with "
                f"'{name}.' (docs/operate.md, 'Permissions', has the rabbitmqctl command).",
            ) from error
    return file_id


def _owner_in(error: ChannelPreconditionFailed, name: str) -> str | None:
    if _IS_ANOTHER.search(str(error)):
        found = _CURRENT.search(str(error))
        return found[1].removeprefix(f"{name}.") if found else UNKNOWN
    if _IS_MISSING.search(str(error)):
        return None
    raise BrokerRefused(
        f"Exchange {name!r}, which should name the queue's database file, was not declared by a "
        f"worker ({error}).",
        "delete it if nobody needs it, or set WORKER_QUEUE to another name.",
    ) from error


async def _is_consumed(channel: AbstractChannel, queue: str) -> bool:
    try:
        declared = await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity:
        return False
    return bool(declared.declaration_result.consumer_count)
