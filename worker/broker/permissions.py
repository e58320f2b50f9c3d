"""What the broker permits its user: which permissions the worker needs, and how to grant them.

RabbitMQ grants a user configure, write and read, each on the exchanges and queues whose names match
a regular expression (rabbitmq.com/docs/access-control).
"""

import re
import shlex
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, Self, TypeVar

from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelAccessRefused

from worker.broker.connection import BrokerAddress
from worker.errors import BrokerRefused

P = ParamSpec("P")
T = TypeVar("T")

# What RabbitMQ calls the default exchange here (rabbitmq.com/docs/access-control).
DEFAULT_EXCHANGE = "amq.default"


class Prefix(str):
    """Stands for all names that begin with it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Permissions:
    """The exchanges and queues that a user may configure, write to and read from."""

    configure: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    read: tuple[str, ...] = ()

    def command(self, user: str, vhost: str) -> str:
        """Return the command that grants these permissions, in place of all that there were."""
        patterns = [_pattern(names) for names in (self.configure, self.write, self.read)]
        return shlex.join(["rabbitmqctl", "set_permissions", "-p", vhost, user, *patterns])


def _pattern(names: Iterable[str]) -> str:
    # An empty pattern would do, but reads like a mistake.
    patterns = [re.escape(name) + ".*" * isinstance(name, Prefix) for name in names]
    return f"^({'|'.join(patterns)})$" if patterns else "^$"


class NotPermitted(BrokerRefused):
    """The broker's user lacks a permission; the hint is the command that grants it."""


@contextmanager
def requiring(
    permissions: Permissions, address: BrokerAddress, to: str, *, or_else: str = ""
) -> Iterator[None]:
    """Raise `NotPermitted` if the broker does not permit what the block asks.

    `to` says what that is, such as "read queue 'q'"; `or_else` is another way out.
    """
    try:
        yield
    except ChannelAccessRefused as error:
        raise NotPermitted(
            f"The broker's user {address.user!r} may not {to} ({error}).",
            f"run {permissions.command(address.user, address.vhost)}{or_else}",
        ) from error


class Questions:
    """Asks the broker one thing after the other, and leaves out what the user may not ask.

    For use with `async with`.
    """

    def __init__(self, connection: AbstractConnection, not_permitted: Iterable[str] = ()) -> None:
        """Ask on this connection; what is known not to be permitted is not asked.

        The broker writes an error into its log for each question that it refuses.
        """
        self._connection = connection
        self._channel: AbstractChannel | None = None
        self.not_permitted = list(not_permitted)
        """The subjects of the questions that the broker refuses to answer."""

    async def __aenter__(self) -> Self:
        """Open nothing yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()

    async def ask(
        self,
        subject: str,
        question: Callable[Concatenate[AbstractChannel, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T | None:
        """Return the answer; None if the user may not ask this."""
        if subject in self.not_permitted:
            return None
        if self._channel is None:
            self._channel = await self._connection.channel()
        try:
            return await question(self._channel, *args, **kwargs)
        except ChannelAccessRefused:
            # The broker has closed the channel with its refusal.
            self._channel = None
            self.not_permitted.append(subject)
            return None
