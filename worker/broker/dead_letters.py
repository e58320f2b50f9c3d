"""Dead letters: how a rejected message and its reason are published and read.

Promise: a dead letter keeps the raw body, and is confirmed before `publish` returns.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from aiormq.abc import DeliveredMessage

from worker.broker import headers as known
from worker.broker.properties import KEPT_PROPERTIES
from worker.broker.publisher import Publisher
from worker.deliveries import DETAIL_MAX_CHARACTERS, Outcome
from worker.messages import now

ID_MAX_CHARACTERS = 255


async def publish(publisher: Publisher, queue: str, outcome: Outcome) -> None:
    """Publish a rejected delivery, with its reason in its headers, and wait for the confirm.

    Raises what `Publisher.publish` raises; in that case the delivery must not be acked.
    """
    if outcome.rejected is None:
        raise ValueError(f"Only a rejected delivery is a dead letter, not {outcome.verdict}.")
    delivery = outcome.delivery
    properties = delivery.read_properties()
    kept = {k: v for k, v in properties.headers.items() if k not in known.DELIVERY_HEADERS}
    await publisher.publish(
        delivery.body,
        routing_key=delivery.routing_key,
        content_type=known.sendable_text(delivery.content_type),
        headers={
            **known.sendable(kept),
            known.REASON: outcome.rejected.reason.value,
            known.DETAIL: outcome.rejected.detail,
            known.QUEUE: queue,
            known.REJECTED_AT: now(),
        },
        properties=known.sendable_properties(properties.kept),
    )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message in the dead-letter queue."""

    number: int
    """Its place in the queue, counted from 1."""
    delivered: DeliveredMessage
    """The delivery that holds the letter."""
    reason: str
    """The worker's reason, the broker's (such as delivery_limit), or unknown."""
    detail: str
    rejected_at: datetime | None
    kind: str | None
    id: str | None
    """Kind and id from the body; None where it has none or cannot be read."""
    message_id: str | None
    """The AMQP property."""
    routing_key: str
    """The routing key of the first publish, even after a requeue."""
    requeue_count: int
    content_type: str | None
    properties: Mapping[str, object]
    headers: Mapping[str, object]
    """The headers that the other fields do not cover."""
    body: bytes

    @classmethod
    def of(cls, number: int, delivered: DeliveredMessage) -> "DeadLetter":
        """Return the letter that a delivery holds; missing or odd headers raise nothing."""
        properties = delivered.header.properties
        headers: Mapping[str, object] = properties.headers or {}
        reason, detail, rejected_at = _cause(headers)
        kind, message_id = _kind_and_id(delivered.body)
        requeue_count = known.requeue_count(headers)
        original = headers.get(known.ROUTING_KEY) if requeue_count else None
        covered = (*known.OWN_HEADERS, *known.REQUEUE_HEADERS, *known.DELIVERY_HEADERS)
        return cls(
            number=number,
            delivered=delivered,
            reason=reason,
            detail=detail,
            rejected_at=rejected_at,
            kind=kind,
            id=message_id,
            message_id=properties.message_id,
            routing_key=original if isinstance(original, str) else delivered.routing_key or "",
            requeue_count=requeue_count,
            content_type=properties.content_type,
            properties={
                name: value
                for name, attribute in KEPT_PROPERTIES.items()
                if (value := getattr(properties, attribute)) is not None
            },
            headers={name: value for name, value in headers.items() if name not in covered},
            body=delivered.body,
        )

    @property
    def name(self) -> str:
        """The message's id, or else its place in the queue, for people."""
        return self.id or self.message_id or f"number {self.number}"


def _cause(headers: Mapping[str, object]) -> tuple[str, str, datetime | None]:
    """Return reason, detail and time."""
    own = [headers.get(name) for name in known.OWN_HEADERS]
    # A publisher may use one of these header names, but only the worker writes all four.
    if all(isinstance(value, str) for value in own):
        reason, detail, _, rejected_at = own
        shortened = str(reason)[:ID_MAX_CHARACTERS], str(detail)[:DETAIL_MAX_CHARACTERS]
        return *shortened, known.parse_time(rejected_at)
    broker_reason, queue, died_at = known.death(headers)
    if broker_reason is None:
        return "unknown", "", died_at
    return (
        broker_reason[:ID_MAX_CHARACTERS],
        f"The broker took it out of queue {queue or 'unknown'}.",
        died_at,
    )


def _kind_and_id(body: bytes) -> tuple[str | None, str | None]:
    content: object = None
    with suppress(ValueError, RecursionError):
        content = json.loads(body)
    message = content if isinstance(content, dict) else {}
    return _word(message.get("kind")), _word(message.get("id"))


def _word(value: object) -> str | None:
    return value[:ID_MAX_CHARACTERS] if isinstance(value, str) and value else None
