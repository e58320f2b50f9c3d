"""The consumer's end of the broker. Turns what arrives into batches and outcomes into settlement.

Knows no SQLite and no kinds. Promise: a delivery is acked only after an outcome exists for it, and
a rejected one only after the broker confirmed its dead letter.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic

from worker.broker import dead_letters
from worker.broker.publisher import LOST, Publisher, is_cancelled_here
from worker.deliveries import Delivery, Outcome, Verdict
from worker.errors import BrokerRefused, SessionLost

# Confirms take milliseconds; one that takes this long is held up by an alarm of the broker.
BLOCKED_SECONDS = 5
# How long a drain waits for confirms that are on their way, so that nothing is dead-lettered twice.
DRAIN_SECONDS = 1
RETRY_SECONDS = 1
# What a dead letter keeps: the name that aio-pika's Message takes -> the one pamqp gives.
KEPT_PROPERTIES = {
    "app_id": "app_id",
    "content_encoding": "content_encoding",
    "correlation_id": "correlation_id",
    "message_id": "message_id",
    "timestamp": "timestamp",
    "type": "message_type",
}


class Consumer:
    """Batches of whatever has arrived; an iterator that ends when it drains.

    `async for batch in consumer` raises `SessionLost` when the session has ended otherwise.
    """

    def __init__(
        self,
        channel: AbstractChannel,
        dead_letter_publisher: Publisher,
        queue: str,
        *,
        batch_size: int,
        on_blocked: Callable[[str | None], None],
    ) -> None:
        """Settle on the channel that delivers.

        `on_blocked` hears why dead letters cannot be published, and None once they can be again.
        """
        self._channel = channel
        self._publisher = dead_letter_publisher
        self._queue = queue
        self._batch_size = batch_size
        self._on_blocked = on_blocked
        self._is_blocked = False
        self._waiting: deque[DeliveredMessage] = deque()
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def on_delivery(self, message: DeliveredMessage) -> None:
        """Enqueue, and nothing else: the client library runs this while it reads."""
        self._waiting.append(message)
        self._arrived.set()

    def lose(self, reason: str) -> None:
        """End the session: what waits is the broker's again."""
        if not self._lost.done():
            self._lost.set_exception(
                SessionLost(
                    f"The session with the broker ended ({reason}).",
                    "a new one is opened by itself; see RabbitMQ's log if it is not.",
                )
            )
            self._lost.exception()  # Marks it as seen: it may end a session that nobody awaits.
        self._waiting.clear()
        self._arrived.set()

    def drain(self) -> None:
        """Take no more; what waits is left to the broker."""
        self._drained.set()
        self._arrived.set()

    async def drains(self, *, within_seconds: float) -> bool:
        """Wait that long at most; tell whether the worker drains.

        Raises `SessionLost` if the session ends meanwhile.
        """
        draining = asyncio.ensure_future(self._drained.wait())
        ends: set[asyncio.Future[Any]] = {draining, self._lost}
        await asyncio.wait(ends, timeout=within_seconds, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        if self._lost.done():
            self._lost.result()
        return self._drained.is_set()

    def __aiter__(self) -> Self:
        """Iterate over batches."""
        return self

    async def __anext__(self) -> list[Delivery]:
        """Give what has arrived, at least one delivery and at most a batch."""
        while not self._drained.is_set():
            if self._lost.done():
                self._lost.result()
            if self._waiting:
                count = min(len(self._waiting), self._batch_size)
                return [_delivery(self._waiting.popleft()) for _ in range(count)]
            self._arrived.clear()
            await self._arrived.wait()
        raise StopAsyncIteration

    async def settle(self, outcomes: Sequence[Outcome]) -> bool:
        """Dead-letter the rejected and wait for the confirms, then ack all with one frame.

        The outcomes are those of one batch. False if the worker drains while dead letters are
        blocked: nothing is acked then. Raises `SessionLost` if the session ended before. All that
        is not acked comes again, and the log knows it.
        """
        rejected = [o for o in outcomes if o.verdict is Verdict.REJECTED]
        # Dead letters first: an ack before the confirm could lose the message.
        if rejected and not await self._dead_letter(rejected):
            return False
        # Tags rise with the order of delivery, and every earlier batch has been acked.
        last = max(outcome.delivery.tag for outcome in outcomes)
        try:
            await self._channel.basic_ack(last, multiple=True)
        except (*LOST, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled_here():
                raise
            self.lose(f"no ack could be sent: {type(error).__name__}")
            self._lost.result()
        return True

    async def _dead_letter(self, rejected: Sequence[Outcome]) -> bool:
        """Tell whether all are confirmed; they are not if the worker drains while it is blocked."""
        publishing = asyncio.ensure_future(self._publish_all(rejected))
        draining = asyncio.ensure_future(self._drained.wait())
        ends: set[asyncio.Future[Any]] = {publishing, draining, self._lost}
        try:
            done, _ = await asyncio.wait(
                ends, timeout=BLOCKED_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                self._block("the broker does not confirm a dead letter; it may be in an alarm")
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if draining.done() and not self._is_blocked:
                await asyncio.wait({publishing}, timeout=DRAIN_SECONDS)
            if not publishing.done():
                if self._lost.done():
                    self._lost.result()
                return False
            publishing.result()
            self._block(None)
            return True
        finally:
            draining.cancel()
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)

    async def _publish_all(self, rejected: Sequence[Outcome]) -> None:
        # One after the other: aiormq tells what the broker returns apart by the message id alone,
        # and two copies of one bad message share theirs.
        for outcome in rejected:
            await self._publish_until_confirmed(outcome)

    async def _publish_until_confirmed(self, outcome: Outcome) -> None:
        while True:
            try:
                return await dead_letters.publish(self._publisher, self._queue, outcome)
            except BrokerRefused as error:
                # A full dead-letter queue, or one that is gone: the delivery stays unacked. To end
                # the session would count as a lost delivery of its neighbours.
                self._block(error.message)
                await asyncio.sleep(RETRY_SECONDS)

    def _block(self, reason: str | None) -> None:
        if (reason is not None) != self._is_blocked:
            self._is_blocked = reason is not None
            self._on_blocked(reason)


def _delivery(message: DeliveredMessage) -> Delivery:
    properties: Basic.Properties = message.header.properties
    kept = {name: getattr(properties, theirs) for name, theirs in KEPT_PROPERTIES.items()}
    return Delivery(
        body=message.body,
        tag=message.delivery_tag or 0,
        routing_key=message.routing_key or "",
        content_type=properties.content_type,
        redelivered=bool(message.redelivered),
        headers=properties.headers or {},
        properties={name: value for name, value in kept.items() if value is not None},
    )
