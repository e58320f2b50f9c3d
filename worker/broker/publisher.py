"""Publishing with publisher confirms.

A publisher has its own connection: in an alarm, the broker stops reading from connections that
publish, and would not see acks on the same connection (rabbitmq.com/docs/alarms).
"""

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
)
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection, HeadersType
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused

from worker.broker.connection import BrokerAddress, connection, loss_raised_as, sentence
from worker.broker.permissions import DEFAULT_EXCHANGE, Permissions, requiring
from worker.errors import BrokerRefused, SessionLost
from worker.tasks import end

# Confirms come in groups. Enough publishes must be in flight that the broker never has to wait.
IN_FLIGHT = 1_000

T = TypeVar("T")


class _SameId:
    """The publishes in flight that share a message id.

    aiormq 7.2 matches a message that the broker returns by its message id alone, so of two
    publishes with one id it may report the wrong one as confirmed (its channel.py,
    `_on_return_frame`). The first return always reaches one of them, and then none counts as
    confirmed.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: BaseException | None = None


class Publisher:
    """Publishes to one exchange; every publish that returns has been confirmed.

    `publish` may be called many times at once. The caller bounds their number and bytes.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        exchange: str,
        address: BrokerAddress,
        needed: Permissions,
    ) -> None:
        """Publish on this connection; an empty name means the default exchange.

        If the user of the address may not publish, the error's hint is to grant it `needed`.
        """
        self._connection = connection
        self._name = exchange
        self._channel: AbstractChannel | None = None
        self._address = address
        self._needed = needed
        self._opening = asyncio.Lock()
        self._same_id: dict[str, _SameId] = {}

    def call_when_lost(self, callback: Callable[[str], None]) -> None:
        """Register a callback that gets the reason when the connection ends, even when idle."""

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
        """Return once the broker has confirmed the message, which in an alarm may be never.

        Raises `SessionLost` if the connection ends first, and `BrokerRefused` if the user may not
        publish, or the broker cannot route the message or rejects it.
        """
        message = aio_pika.Message(
            body,
            content_type=content_type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers=cast("HeadersType", dict(headers or {})),
            **cast("dict[str, Any]", dict(properties or {})),
        )
        to = f"write to exchange {self._name or DEFAULT_EXCHANGE!r}"
        with loss_raised_as(_unconfirmed), requiring(self._needed, self._address, to):
            try:
                channel = await self._open()
                async with self._sharing_fate(message.message_id):
                    # Its confirm says that it was sent, so nobody waits for the socket.
                    await channel.basic_publish(
                        body,
                        exchange=self._name,
                        routing_key=_fitting(routing_key),
                        properties=message.properties,
                        mandatory=True,
                        wait=False,
                    )
            except aio_pika.exceptions.DeliveryError as error:
                raise BrokerRefused(
                    f"The broker did not accept a message for exchange {self._name!r} "
                    f"({sentence(error)}).",
                    "check that a queue is bound to it and is not full; 'projection-worker "
                    "topology apply' binds the worker's queue.",
                ) from error

    @asynccontextmanager
    async def _sharing_fate(self, message_id: str | None) -> AsyncIterator[None]:
        """End together with the other publishes of the same id, and fail if one of them fails."""
        if message_id is None:
            yield  # aiormq generates a unique one.
            return
        same = self._same_id.setdefault(message_id, _SameId())
        same.in_flight += 1
        try:
            yield
        except BaseException as error:
            same.error = error
            raise
        finally:
            same.in_flight -= 1
            if not same.in_flight:
                del self._same_id[message_id]
                same.ended.set_result(None)
        await asyncio.shield(same.ended)
        if same.error is not None:
            raise same.error

    async def _open(self) -> aiormq.Channel:
        """Return the channel, a new one if a refusal has closed the previous one."""
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._connection.channel(
                    publisher_confirms=True, on_return_raises=True
                )
            # Its abstract class does not have all parameters of `basic_publish`.
            return cast("aiormq.Channel", await self._channel.get_underlay_channel())


def _unconfirmed(reason: str) -> SessionLost:
    return SessionLost(
        f"The connection ended before the broker confirmed ({reason}).",
        "it is unknown whether the message arrived; publish it again with the same id.",
    )


def _fitting(routing_key: str) -> str:
    # AMQP limits a routing key to 255 bytes of UTF-8 (AMQP 0-9-1, "shortstr").
    return routing_key.encode(errors="ignore")[:255].decode(errors="ignore")


@asynccontextmanager
async def in_flight(
    works: Iterable[Coroutine[Any, Any, T]],
) -> AsyncIterator[asyncio.Future[list[T]]]:
    """Start publishes together; yield a future of all their results, or of the first failure.

    Publishes that have not ended when the block ends are cancelled: when a connection ends, aiormq
    leaves some that it has not sent yet waiting forever.
    """
    tasks = [asyncio.create_task(work) for work in works]
    all_of_them = asyncio.gather(*tasks)
    # Mark a failure as retrieved, because the block may end before it.
    all_of_them.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    try:
        yield all_of_them
    finally:
        await asyncio.gather(*(end(task) for task in tasks if not task.done()))


class _Window:
    """Runs at most `IN_FLIGHT` pieces of work at once; after a failure, it starts no more.

    The block ends when all started work has ended, and raises the first failure.
    """

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._failures: list[Exception] = []
        self._running: set[asyncio.Task[None]] = set()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # An interrupted command does not wait for confirms, which in an alarm do not come.
        if not isinstance(error, asyncio.CancelledError):
            ends: set[asyncio.Future[Any]] = {asyncio.gather(*self._running), self._lost}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*map(end, self._running))
        if error is None:
            self._require()

    async def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start work when there is room; raises the first failure of earlier work."""
        await self._room.acquire()
        self._require()
        task = asyncio.create_task(self._do(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _do(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - raised by `_require`
            self._failures.append(error)
            # When a connection ends, aiormq leaves some publishes waiting forever.
            if isinstance(error, SessionLost) and not self._lost.done():
                self._lost.set_result(None)
        finally:
            self._room.release()

    def _require(self) -> None:
        if self._failures:
            raise self._failures[0]


async def publish_all(
    target: Publisher,
    messages: AsyncIterable[tuple[bytes, str]],
    on_confirmed: Callable[[], None],
) -> None:
    """Publish bodies with their routing keys, many at once, started in order.

    `on_confirmed` is called for each confirm. After a failure, no further publish is started; the
    failure is raised when those in flight have ended.
    """

    async def publish_one(body: bytes, routing_key: str) -> None:
        await target.publish(body, routing_key=routing_key)
        on_confirmed()

    async with _Window() as window:
        async for body, routing_key in messages:
            await window.start(partial(publish_one, body, routing_key))


@asynccontextmanager
async def publisher(
    address: BrokerAddress, exchange: str, name: str, needed: Permissions
) -> AsyncIterator[Publisher]:
    """Hold a publisher to an exchange, on its own connection.

    Raises what `connection` raises, and `BrokerRefused` if the exchange does not exist.
    """
    async with connection(address, name) as opened:
        try:
            async with opened.channel() as channel:
                await channel.get_exchange(exchange, ensure=True)
        except ChannelAccessRefused:
            # Since 4.2.6, RabbitMQ shows an exchange only to users with a permission on it. The
            # first publish reports which permission is missing.
            pass
        except ChannelNotFoundEntity as error:
            raise BrokerRefused(
                f"There is no exchange {exchange!r} on the broker.",
                "create it with 'projection-worker topology apply', or set WORKER_EXCHANGE.",
            ) from error
        yield Publisher(opened, exchange, address, needed)
