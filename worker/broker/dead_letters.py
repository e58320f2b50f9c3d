"""Dead letters: publishing a rejected message with its reason, and looking at those there are.

Promise: a dead letter keeps the raw body, and is confirmed before `publish` returns.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aio_pika.abc import AbstractIncomingMessage, HeadersType
from aio_pika.exceptions import ChannelNotFoundEntity

from worker.broker.connection import BrokerAddress, closing, connection
from worker.broker.publisher import Publisher, can_be_sent
from worker.broker.topology import Topology
from worker.deliveries import Outcome
from worker.errors import BrokerRefused
from worker.messages import now

# Why, in the worker's own words; the broker's own dead letters have x-death instead.
REASON = "x-reason"
DETAIL = "x-detail"
QUEUE = "x-queue"
REJECTED_AT = "x-rejected-at"
OWN_HEADERS = (REASON, DETAIL, QUEUE, REJECTED_AT)
# The broker's account of the delivery that was rejected; on a new message it would be a lie.
NOT_KEPT = ("x-delivery-count", "x-acquired-count")


async def publish(publisher: Publisher, queue: str, outcome: Outcome) -> None:
    """Publish a rejected delivery, with its reason in its headers, and wait for the confirm.

    Raises what `Publisher.publish` raises; the delivery must not be acked then.
    """
    if outcome.rejected is None:
        raise ValueError(f"Only a rejected delivery is a dead letter, not {outcome.verdict}.")
    delivery = outcome.delivery
    kept = {name: value for name, value in delivery.headers.items() if name not in NOT_KEPT}
    await publisher.publish(
        delivery.body,
        routing_key=delivery.routing_key,
        content_type=delivery.content_type,
        headers={
            **(kept if can_be_sent(kept) else {}),
            REASON: outcome.rejected.reason.value,
            DETAIL: outcome.rejected.detail,
            QUEUE: queue,
            REJECTED_AT: now(),
        },
        properties=delivery.properties,
    )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that waits in the dead-letter queue."""

    number: int
    """Its place in the queue, from 1."""
    reason: str
    detail: str
    rejected_at: str | None
    message_id: str | None
    routing_key: str
    content_type: str | None
    headers: Mapping[str, object]
    body: bytes

    @classmethod
    def of(cls, number: int, message: AbstractIncomingMessage) -> "DeadLetter":
        """Read the headers, which the worker or the broker wrote."""
        headers = message.headers
        return cls(
            number=number,
            reason=str(headers.get(REASON) or _broker_reason(headers)),
            detail=str(headers.get(DETAIL, "")),
            rejected_at=_text(headers.get(REJECTED_AT)),
            message_id=message.message_id,
            routing_key=message.routing_key or "",
            content_type=message.content_type,
            headers={k: v for k, v in headers.items() if k not in (*OWN_HEADERS, *NOT_KEPT)},
            body=message.body,
        )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _broker_reason(headers: HeadersType) -> object:
    return headers.get("x-first-death-reason", "unknown")


@asynccontextmanager
async def browse(
    address: BrokerAddress, topology: Topology
) -> AsyncIterator[AsyncIterator[DeadLetter]]:
    """Look at the dead letters, oldest first, and leave them all in the queue.

    Raises what `connection` raises, and `BrokerRefused` if there is no such queue.
    """
    async with connection(address, "projection-worker dead-letters") as opened:
        channel = await opened.channel()
        try:
            queue = await channel.get_queue(topology.dead_letters, ensure=True)
        except ChannelNotFoundEntity as error:
            raise BrokerRefused(
                f"There is no queue {topology.dead_letters!r} on the broker.",
                "make it with 'projection-worker topology apply', or set WORKER_QUEUE.",
            ) from error

        async def look() -> AsyncIterator[DeadLetter]:
            number = 0
            while message := await queue.get(no_ack=False, fail=False):
                number += 1
                yield DeadLetter.of(number, message)

        try:
            yield look()
        finally:
            # What was delivered and not acked goes back to its place in the queue.
            await closing(channel)
