"""Connections to the broker: its address, TLS, and errors for refusals and missing answers.

This module knows nothing of what is sent over the connections.
"""

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    AMQPError,
    AuthenticationError,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from yarl import URL

from worker.addresses import is_ip_address, shown, vhost_of
from worker.broker import decoders
from worker.broker.intake import Intake
from worker.broker.transport import Transport
from worker.errors import BrokerRefused, SessionLost
from worker.tasks import first_of, in_time

T = TypeVar("T")

# These libraries' errors arrive as exceptions, which the worker reports once, as a change of state.
# At DEBUG they would log whole frames, which may contain new secrets.
for library in ("aio_pika", "aiormq"):
    logging.getLogger(library).setLevel(logging.CRITICAL)

# aiormq considers a peer dead after 3 * (9 + 1) seconds and checks every 4, so after at most 34.
# RabbitMQ recommends an interval of 5 to 20 (rabbitmq.com/docs/heartbeats).
HEARTBEAT_SECONDS = 9
CONNECT_SECONDS = 4
# The wait before the next address or node is tried in parallel to one that does not answer.
NEXT_SECONDS = 1
# A drain closes two connections and a channel, one after the other.
CLOSE_SECONDS = 0.5
# What the library raises for a connection or channel that has ended. RuntimeError is what it raises
# for one that is closed.
LOST = (AMQPError, OSError, RuntimeError)
# A broker that refuses the virtual host sends a Close, which aiormq 7.2 reports as an unexpected
# frame, without the broker's text.
REFUSALS = (AuthenticationError, InvalidFrameError, ProbableAuthenticationError)

UNREACHABLE = "The broker cannot be reached ("

Opened: TypeAlias = tuple[AbstractConnection, Transport]


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is, and how both sides authenticate."""

    urls: tuple[str, ...] = field(repr=False)
    """The nodes of one cluster. They contain passwords, so they are never shown."""
    ca_file: Path | None = None
    """The CA of an amqps broker's certificate; None means the CAs that the system trusts."""
    certificate_file: Path | None = None
    key_file: Path | None = None

    @property
    def user(self) -> str:
        """The user's name."""
        return unquote(urlsplit(self.urls[0]).username or "guest")

    @property
    def vhost(self) -> str:
        """The virtual host; / if the address names none."""
        return vhost_of(self.urls[0])

    def tls(self) -> ssl.SSLContext:
        """Return a context that verifies the broker's certificate and name, with at least TLS 1.2.

        The files are read again for each connection, so that renewed files need no restart. Raises
        `BrokerRefused` if they cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            # The system's default may be lower.
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate_file is not None:
                # Without a password, OpenSSL would prompt on the terminal for an encrypted key's.
                context.load_cert_chain(self.certificate_file, self.key_file, password="")
        except (OSError, ValueError) as error:
            files = [self.ca_file, self.certificate_file, self.key_file]
            raise BrokerRefused(
                f"The files for TLS cannot be used ({', '.join(map(str, filter(None, files)))}: "
                f"{error}).",
                "check that they exist, are in PEM format, and belong together "
                "(WORKER_AMQP_CA_FILE, WORKER_AMQP_CERTIFICATE_FILE, WORKER_AMQP_KEY_FILE).",
            ) from error
        return context


@asynccontextmanager
async def connection(
    address: BrokerAddress, name: str, intake: Intake | None = None
) -> AsyncIterator[AbstractConnection]:
    """Hold a connection to any node that answers; `name` is what the broker shows for it.

    Deliveries go to the intake. Raises `BrokerRefused` if the broker refuses, and `SessionLost` if
    no node answers.
    """
    opened, transport = await _connect_to_any(address, name, intake)
    try:
        try:
            yield opened
        finally:
            await closing(opened)
    finally:
        # Closing fails if the peer reads nothing. A connection left open would keep its consumer,
        # and with it deliveries that nobody takes.
        transport.abort()


async def _connect_to_any(address: BrokerAddress, name: str, intake: Intake | None) -> Opened:
    decoders.install()
    # In random order, so that the workers of a cluster spread over its nodes.
    urls = random.sample(address.urls, len(address.urls))
    nodes = [partial(_connect_to_node, url, address, name, intake) for url in urls]
    return await _first_to_answer(nodes)


async def _connect_to_node(
    url: str, address: BrokerAddress, name: str, intake: Intake | None
) -> Opened:
    """Connect to the first of a node's addresses that answers; a name may have several."""
    hosts = await _hosts(url)
    attempts = [partial(_connect, url, host, address, name, intake) for host in hosts]
    return await _first_to_answer(attempts)


async def _first_to_answer(attempts: Iterable[Callable[[], Coroutine[Any, Any, Opened]]]) -> Opened:
    try:
        return await first_of(attempts, NEXT_SECONDS, SessionLost, _abort)
    except ExceptionGroup as failed:
        # All reasons, because any may be the one that matters: an expired certificate at one
        # address, while nobody listens at another.
        reasons = [
            str(each.args[0]).removeprefix(UNREACHABLE).removesuffix(").")
            for each in failed.exceptions
        ]
        raise _cannot_be_reached("; ".join(dict.fromkeys(reasons))) from failed


async def _hosts(url: str) -> list[str]:
    host = URL(url).host or ""
    if is_ip_address(host):
        return [host]
    try:
        looking = asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        found = await in_time(looking, CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        # An invalid host name raises ValueError.
        raise _unreachable(url, error) from error
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


async def _connect(
    url: str, host: str, address: BrokerAddress, name: str, intake: Intake | None
) -> Opened:
    transport = Transport(intake, host)
    connecting = aio_pika.connect(
        url,
        ssl_context=address.tls() if urlsplit(url).scheme == "amqps" else None,
        client_properties={"connection_name": name},
        heartbeat=HEARTBEAT_SECONDS,
        connection_class=_over(transport),
    )
    try:
        return await in_time(connecting, CONNECT_SECONDS), transport
    except BaseException as error:
        transport.abort()
        if isinstance(error, REFUSALS):
            raise _refused(url, error) from error
        if isinstance(error, (AMQPError, OSError, ValueError)):
            raise _unreachable(url, error) from error
        raise


def _abort(opened: Opened) -> None:
    opened[1].abort()


def _refused(url: str, error: Exception) -> BrokerRefused:
    return BrokerRefused(
        f"The broker refuses the connection ({shown(url)}: {sentence(error)}).",
        "check the user, password and virtual host in WORKER_AMQP_URL, and the user's permissions.",
    )


def _unreachable(url: str, error: Exception) -> SessionLost:
    return _cannot_be_reached(f"{shown(url)}: {sentence(error)}")


def _cannot_be_reached(reasons: str) -> SessionLost:
    return SessionLost(
        f"{UNREACHABLE}{reasons}).",
        "check that RabbitMQ runs, that WORKER_AMQP_URL names its host and port, and, for amqps, "
        "that its certificate is for that host and from a trusted authority.",
    )


def _over(transport: Transport) -> type[aio_pika.Connection]:
    """Return the library's connection class, on top of this transport."""

    class Connection(aio_pika.Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the library's
            super().__init__(*args, **kwargs)
            self.kwargs["transport_factory"] = transport

        def __del__(self) -> None:
            # The library's own method closes a connection that never opened. It does so in a task,
            # in whichever thread collects the garbage, and that thread may have no loop. Here the
            # transport has already been aborted.
            pass

    return Connection


def version_of(connection: AbstractConnection) -> str:
    """Return the broker's version, such as 4.3.6; empty if it does not say."""
    if connection.transport is None:
        return ""
    version = connection.transport.connection.server_properties.get("version")
    return version if isinstance(version, str) else ""


async def closing(part: AbstractConnection | AbstractChannel) -> None:
    """Close, and wait at most `CLOSE_SECONDS` for the broker's answer."""
    try:
        await in_time(part.close(), CLOSE_SECONDS)
    except (Exception, asyncio.CancelledError) as error:
        # It may have ended already. A timeout counts as a loss, because it is an OSError.
        if not is_loss(error):
            raise


async def answer_within(work: Awaitable[T], seconds: float) -> T:
    """Return the broker's answer; raises `SessionLost` if none comes in time."""
    try:
        return await in_time(work, seconds)
    except TimeoutError as error:
        # A node without a quorum may never answer.
        raise SessionLost(
            f"The broker did not answer within {seconds} seconds.",
            "check whether it is starting, overloaded or without a quorum.",
        ) from error


def sentence(error: BaseException) -> str:
    """Return a library exception's name and text on one line."""
    words = ", ".join(str(arg) for arg in error.args if arg is not None)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def is_loss(error: BaseException) -> bool:
    """Return whether a call to the library failed because its connection or channel has ended.

    When a channel closes, aiormq 7.2 rejects or cancels whatever waits on it, with a bare
    `Exception` if it knows no reason (its base.py, `reject_all`). A cancellation of this task is
    not a loss.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() == 0
    return isinstance(error, LOST) or type(error) is Exception


@contextmanager
def loss_raised_as(lost: Callable[[str], SessionLost]) -> Iterator[None]:
    """Raise `lost(reason)` if the block fails because its connection or channel has ended."""
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        if not is_loss(error):
            raise
        raise lost(sentence(error)) from error
