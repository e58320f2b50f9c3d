"""Dead letters for tests, put into the queue without a worker that rejects anything."""

import asyncio
from collections.abc import Iterable
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from tests.builders import Message, body
from tests.queues import Queues
from tests.waiting import eventually
from worker.broker.connection import BrokerAddress
from worker.broker.dead_letter_queue import Selection, dead_letter_queue
from worker.broker.topology import Topology

REASON = "unknown_kind"
REJECTED_AT = "2026-04-27T10:39:03.120000Z"
UNCONFIRMED = 200


def headers(reason: str = REASON, at: str = REJECTED_AT, **more: Any) -> dict[str, Any]:
    """Return the headers that the worker writes, and others."""
    own = {"x-reason": reason, "x-detail": "why", "x-queue": "q", "x-rejected-at": at}
    return own | {name.replace("_", "-"): value for name, value in more.items()}


async def put(queues: Queues, messages: Iterable[Message | bytes], **properties: Any) -> None:
    """Dead-letter messages in order, with the routing key of their chat."""
    usual: dict[str, Any] = {"headers": headers(), "delivery_mode": 2}
    properties = usual | properties
    async with queues.channel() as channel:
        exchange = await channel.get_exchange(queues.dead_letters)
        waiting = [each if isinstance(each, bytes) else body(each) for each in messages]
        for start in range(0, len(waiting), UNCONFIRMED):
            chunk = waiting[start : start + UNCONFIRMED]
            await asyncio.gather(
                *(exchange.publish(aio_pika.Message(b, **properties), "chat-1") for b in chunk)
            )


async def take_back(queues: Queues) -> list[AbstractIncomingMessage]:
    """Take everything out of the worker's queue, which serves only consumers."""
    taken: list[AbstractIncomingMessage] = []
    expected = (await queues.depth()).ready

    async def keep(message: AbstractIncomingMessage) -> None:
        taken.append(message)

    async with queues.channel() as channel:
        queue = await channel.get_queue(queues.name)
        await queue.consume(keep, no_ack=True)
        await eventually(lambda: len(taken) >= expected)
    return taken


def place_of(queues: Queues, url: str | None = None) -> tuple[BrokerAddress, Topology]:
    """Return the address and the topology that a command makes of the settings."""
    return BrokerAddress((url or queues.url,)), queues.topology()


EVERY = Selection()


async def requeue_all(queues: Queues, selection: Selection = EVERY) -> list[list[str]]:
    """Requeue the selected letters; return what was left out of each."""
    left_out: list[list[str]] = []
    async with dead_letter_queue(*place_of(queues)) as queue:
        async for page in queue.pages(selection):
            await queue.requeue(page, lambda _, names: left_out.append(names))
    return left_out


def unheard(*_: object) -> None:
    """Accept the report of a finished letter, and do nothing."""
