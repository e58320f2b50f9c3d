"""The permissions that the worker needs on the broker, and how to grant them.

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
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from worker.broker.connection import BrokerAddress
from worker.errors import BrokerRefused

P = ParamSpec("P")
T = TypeVar("T")

# RabbitMQ's name for the default exchange in permissions (rabbitmq.com/docs/access-control).
DEFAULT_EXCHANGE = "amq.default"


class Prefix(str):
    """A prefix that stands for all names that begin with it."""

    __slots__ = ()


class Numbered(str):
    """A name that stands for all names that are it, a dot, and a number."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Permissions:
    """The exchanges and queues that a user may configure, write to and read from."""

    configure: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    read: tuple[str, ...] = ()

    def command(self, user: str, vhost: str) -> str:
        """Return the command that grants these permissions and revokes all others."""
        patterns = [_pattern(names) for names in (self.configure, self.write, self.read)]
        return shlex.join(["rabbitmqctl", "set_permissions", "-p", vhost, user, *patterns])


def _pattern(names: Iterable[str]) -> str:
    # An empty pattern would do, but looks like a mistake.
    patterns = [re.escape(name) + _more(name) for name in names]
    return f"^({'|'.join(patterns)})$" if patterns else "^$"


def _more(name: str) -> str:
    if isinstance(name, Numbered):
        return r"\.[0-9]+"
    return ".*" if isinstance(name, Prefix) else ""


class NotPermitted(BrokerRefused):
    """The broker's user lacks a permission; the hint is the command that grants it."""


@contextmanager
def requiring(
    permissions: Permissions, address: BrokerAddress, to: str, *, or_else: str = ""
) -> Iterator[None]:
    """Raise `NotPermitted` if the broker denies what the block requests.

    `to` names the request, such as "read queue 'q'"; `or_else` adds an alternative to the hint.
    """
    try:
        yield
    except ChannelAccessRefused as error:
        raise NotPermitted(
            f"The broker's user {address.user!r} may not {to} ({error}).",
            f"run {permissions.command(address.user, address.vhost)}{or_else}",
        ) from error


class Questions:
    """Asks the broker one question after the other, and skips those that the user may not ask.

    For use with `async with`.
    """

    def __init__(
        self, connection: AbstractConnection, not_permitted: list[str] | None = None
    ) -> None:
        """Prepare to ask on this connection; subjects in `not_permitted` are skipped.

        The broker logs an error for each question that it refuses, and the list gets its subject.
        """
        self._connection = connection
        self._channel: AbstractChannel | None = None
        self._not_permitted = [] if not_permitted is None else not_permitted

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
        """Return the answer; None if the user lacks the permission."""
        if subject in self._not_permitted:
            return None
        if self._channel is None:
            self._channel = await self._connection.channel()
        try:
            return await question(self._channel, *args, **kwargs)
        except ChannelAccessRefused:
            # The broker has closed the channel with its refusal.
            self._channel = None
            self._not_permitted.append(subject)
            return None
        except ChannelNotFoundEntity:
            # The broker closes the channel in this case, too.
            self._channel = None
            raise
