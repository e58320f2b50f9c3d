"""Publishing with the broker's confirm.

A publisher has a connection of its own: in an alarm the broker stops reading from connections that
publish, and acks on the same connection would wait with them (rabbitmq.com/docs/alarms).
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, HeadersType
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused

from worker.broker.connection import BrokerAddress, connection, sentence, telling_loss
from worker.broker.permissions import DEFAULT_EXCHANGE, Permissions, requiring
from worker.errors import BrokerRefused, SessionLost
from worker.tasks import end

# Confirms come in groups; enough must be on the way that the broker never waits for us.
IN_FLIGHT = 1_000


class Publisher:
    """Publishes to one exchange; every publish that returns has been confirmed."""

    def __init__(
        self,
        connection: AbstractConnection,
        exchange: str,
        address: BrokerAddress,
        needed: Permissions,
    ) -> None:
        """Publish on this connection; an empty name is the default exchange.

        `needed` is what the user of the address is told to ask for if it may not publish.
        """
        self._connection = connection
        self._name = exchange
        self._channel: AbstractChannel | None = None
        self._address = address
        self._needed = needed
        self._opening = asyncio.Lock()

    def call_when_lost(self, callback: Callable[[str], None]) -> None:
        """Call with the reason when the connection ends, also while nothing is published."""

        def on_closed(_: object, error: BaseException | None) -> None:
            callback(f"publishing: {sentence(error)}" if error else "publishing: closed")

        self._connection.close_callbacks.add(on_closed)

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

        Raises `SessionLost` if the connection ends first, and `BrokerRefused` if the user may not
        publish, or the broker cannot route the message or does not take it.
        """
        message = aio_pika.Message(
            body,
            content_type=content_type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers=cast("HeadersType", dict(headers or {})),
            **cast("dict[str, Any]", dict(properties or {})),
        )
        to = f"write to exchange {self._name or DEFAULT_EXCHANGE!r}"
        with telling_loss(_unconfirmed), requiring(self._needed, self._address, to):
            try:
                exchange = await self._open()
                await exchange.publish(message, _fitting(routing_key), mandatory=True)
            except aio_pika.exceptions.DeliveryError as error:
                raise BrokerRefused(
                    f"The broker did not take a message for exchange {self._name!r} "
                    f"({sentence(error)}).",
                    "see that a queue is bound to it and is not full; 'projection-worker topology "
                    "apply' binds the worker's own.",
                ) from error

    async def _open(self) -> AbstractExchange:
        """Return the exchange, on a new channel where a refusal has closed the one before."""
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._connection.channel(
                    publisher_confirms=True, on_return_raises=True
                )
            return await self._channel.get_exchange(self._name, ensure=False)


def _unconfirmed(reason: str) -> SessionLost:
    return SessionLost(
        f"The connection ended before the broker confirmed ({reason}).",
        "whether the message arrived is not known; publish it again, with the same id.",
    )


def _fitting(routing_key: str) -> str:
    # AMQP has 255 bytes of UTF-8 for it (AMQP 0-9-1, "shortstr").
    return routing_key.encode(errors="ignore")[:255].decode(errors="ignore")


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
    except asyncio.CancelledError:
        # Nobody waits for the confirms, which in an alarm do not come.
        await asyncio.gather(*map(end, running))
        raise
    except BaseException:
        await asyncio.gather(*running)
        raise
    await asyncio.gather(*running)
    if failures:
        raise failures[0]


@asynccontextmanager
async def publisher(
    address: BrokerAddress, exchange: str, name: str, needed: Permissions
) -> AsyncIterator[Publisher]:
    """Hold a publisher to an exchange, on a connection of its own.

    Raises what `connection` raises, and `BrokerRefused` if the exchange is not there.
    """
    async with connection(address, name) as opened:
        try:
            async with opened.channel() as channel:
                await channel.get_exchange(exchange, ensure=True)
        except ChannelAccessRefused:
            # Since 4.2.6, RabbitMQ shows an exchange only to users who have a permission on it. The
            # first publish tells which one is missing.
            pass
        except ChannelNotFoundEntity as error:
            raise BrokerRefused(
                f"There is no exchange {exchange!r} on the broker.",
                "make it with 'projection-worker topology apply', or set WORKER_EXCHANGE.",
            ) from error
        yield Publisher(opened, exchange, address, needed)
