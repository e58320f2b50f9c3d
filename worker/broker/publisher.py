"""Connections, and publishing with the broker's confirm.

A publisher has a connection of its own: in an alarm the broker stops reading from connections that
publish, and acks on the same connection would wait with them (rabbitmq.com/docs/alarms).
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, HeadersType
from aio_pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelNotFoundEntity,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from pamqp import encode
from pamqp.common import FieldTable

from worker.errors import BrokerRefused, SessionLost

# A dead peer is found after three missed heartbeats, 33 seconds at most; RabbitMQ advises 5 to 20
# (rabbitmq.com/docs/heartbeats).
HEARTBEAT_SECONDS = 10
CONNECT_SECONDS = 10
CLOSE_SECONDS = 1
# All headers of a message share one frame with its properties; the broker's frames have 128 KiB.
MAX_HEADER_BYTES = 64 * 1024
# What the library raises on a connection or channel that has ended; RuntimeError is its "closed".
LOST = (AMQPError, OSError, RuntimeError)
# Confirms come in groups; enough must be on the way that the broker never waits for us.
IN_FLIGHT = 1_000


@asynccontextmanager
async def connection(url: str, name: str) -> AsyncIterator[AbstractConnection]:
    """Hold a connection that the broker shows under a name.

    Raises `BrokerRefused` if the broker says no, `SessionLost` if nobody answers.
    """
    try:
        opened = await aio_pika.connect(
            url,
            timeout=CONNECT_SECONDS,
            client_properties={"connection_name": name},
            heartbeat=HEARTBEAT_SECONDS,
        )
    except (AuthenticationError, InvalidFrameError, ProbableAuthenticationError) as error:
        # An unexpected frame here is the Close of a broker that refuses the virtual host; aiormq
        # 7.2 does not say what the broker said with it.
        raise _refused(url, error) from error
    except (AMQPError, OSError, TimeoutError) as error:
        raise SessionLost(
            f"The broker cannot be reached ({address(url)}: {_sentence(error)}).",
            "see that RabbitMQ runs, and that WORKER_AMQP_URL names its host and port.",
        ) from error
    try:
        yield opened
    finally:
        await closing(opened)


async def closing(part: AbstractConnection | AbstractChannel) -> None:
    """Close, and wait a moment for the broker's answer, but not for ever."""
    with suppress(*LOST, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await part.close()


def address(url: str) -> str:
    """Give a broker's address as people may see it: with the user, without the password."""
    return str(aio_pika.connection.make_url(url).with_password(None).with_query(None))


def _refused(url: str, error: Exception) -> BrokerRefused:
    return BrokerRefused(
        f"The broker refuses the connection ({address(url)}: {_sentence(error)}).",
        "see the user, password and virtual host in WORKER_AMQP_URL, and the user's permissions.",
    )


def _sentence(error: BaseException) -> str:
    words = ", ".join(str(arg) for arg in error.args if arg is not None)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


class Publisher:
    """Publishes to one exchange; every publish that returns has been confirmed."""

    def __init__(self, exchange: aio_pika.abc.AbstractExchange) -> None:
        """Publish to an exchange whose channel has confirms on."""
        self._exchange = exchange

    async def publish(
        self,
        body: bytes,
        *,
        routing_key: str = "",
        content_type: str | None = "application/json",
        headers: Mapping[str, object] | None = None,
        properties: Mapping[str, object] | None = None,
    ) -> None:
        """Return once the broker has the message for good, which in an alarm may be never.

        Raises `SessionLost` if the connection ends first, and `BrokerRefused` if the broker
        cannot route the message or does not take it.
        """
        message = aio_pika.Message(
            body,
            content_type=content_type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers=cast("HeadersType", dict(headers or {})),
            **cast("dict[str, Any]", dict(properties or {})),
        )
        try:
            await self._exchange.publish(message, _fitting(routing_key), mandatory=True)
        except aio_pika.exceptions.DeliveryError as error:
            raise BrokerRefused(
                f"The broker did not take a message for exchange {self._exchange.name!r} "
                f"({_sentence(error)}).",
                "see that a queue is bound to it and is not full; the worker binds its own at "
                "its start.",
            ) from error
        except (*LOST, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled_here():
                raise
            raise SessionLost(
                f"The connection ended before the broker confirmed ({_sentence(error)}).",
                "whether the message arrived is not known; publish it again, with the same id.",
            ) from error


def is_cancelled_here() -> bool:
    """Tell whether this task was cancelled, and not only a future of a channel that closes."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _fitting(routing_key: str) -> str:
    # AMQP has 255 bytes of UTF-8 for it (AMQP 0-9-1, "shortstr").
    return routing_key.encode(errors="ignore")[:255].decode(errors="ignore")


def can_be_sent(headers: Mapping[str, object]) -> bool:
    """Tell whether headers that were received can be sent again."""
    try:
        return len(encode.field_table(cast("FieldTable", dict(headers)))) <= MAX_HEADER_BYTES
    except (TypeError, ValueError, OverflowError):
        return False


async def publish_all(
    target: Publisher,
    messages: AsyncIterable[tuple[bytes, str]],
    on_confirmed: Callable[[], None],
) -> None:
    """Publish bodies with their routing keys, many at once, started in their order.

    `on_confirmed` is called for each that the broker has confirmed. After a failure no further one
    is started; it is raised when those on the way have ended.
    """
    window = asyncio.Semaphore(IN_FLIGHT)
    failures: list[Exception] = []

    async def publish_one(body: bytes, routing_key: str) -> None:
        try:
            await target.publish(body, routing_key=routing_key)
            on_confirmed()
        except Exception as error:  # noqa: BLE001 - raised below: a task that ends takes it along
            failures.append(error)
        finally:
            window.release()

    running: set[asyncio.Task[None]] = set()
    try:
        async for body, routing_key in messages:
            await window.acquire()
            if failures:
                break
            task = asyncio.create_task(publish_one(body, routing_key))
            running.add(task)
            task.add_done_callback(running.discard)
    finally:
        await asyncio.gather(*running)
    if failures:
        raise failures[0]


@asynccontextmanager
async def publisher(url: str, exchange: str, name: str) -> AsyncIterator[Publisher]:
    """Hold a publisher to an exchange, on a connection of its own.

    Raises what `connection` raises, and `BrokerRefused` if the exchange is not there.
    """
    async with connection(url, name) as opened:
        channel = await opened.channel(publisher_confirms=True, on_return_raises=True)
        try:
            found = await channel.get_exchange(exchange, ensure=True)
        except ChannelNotFoundEntity as error:
            raise BrokerRefused(
                f"There is no exchange {exchange!r} on the broker.",
                "start the worker once, which declares it, or set WORKER_EXCHANGE.",
            ) from error
        yield Publisher(found)
