"""All rules of order. The row of an event is the fold of its stream, in the order of position.

Rule 1: a message's position in its stream is (sequence, occurred_at, id), and nothing else.
Rule 2: a message before the stream's head is late; its stream is folded anew.
From both follows the theorem: whatever the order of arrival, the handlers' last run over a stream
saw all its messages in the order of position. Knows no SQL beyond "remove the rows of a stream",
no AMQP, and no kind.
"""

import json
from collections.abc import Awaitable, Callable, Iterable

from pydantic import ValidationError

from worker.messages import AnyMessage, Message, Payload
from worker.registry import Registry
from worker.store.streams import Position
from worker.store.transaction import StoreTransaction

Apply = Callable[[Registry, StoreTransaction, str, AnyMessage], Awaitable[None]]
"""Applies one message of an event, as `apply` does."""


def position(message: AnyMessage) -> Position:
    """Return the message's place in its stream."""
    return (message.sequence, message.occurred_at, message.id)


def is_late(place: Position, head: Position | None) -> bool:
    """Return whether the stream's head, its last position so far, comes after a message's place."""
    return head is not None and place < head


def stored(registry: Registry, tx: StoreTransaction, body: str) -> AnyMessage:
    """Return a message of the log; raises `HandlersFailed` if it no longer fits its model."""
    try:
        return registry.wire.validate_json(body)
    except ValidationError as error:
        raw = json.loads(body)
        payload = Payload.model_construct(event_id=raw["payload"]["event_id"])
        message = Message[Payload].model_construct(None, **raw | {"payload": payload})
        tx.register.raise_for_handler(error, message)
        raise


async def apply(
    registry: Registry, tx: StoreTransaction, event_id: str, message: AnyMessage
) -> None:
    """Run the handler of a message; raises `HandlersFailed`, which names it, if that fails."""
    try:
        await registry.handlers[message.kind](tx.of_stream(event_id, message), message)
    except BaseException as error:
        # Also SystemExit and the like: no message may end the process.
        tx.register.raise_for_handler(error, message)
        raise


async def fold(
    registry: Registry,
    tx: StoreTransaction,
    event_id: str,
    messages: Iterable[AnyMessage],
    *,
    anew: bool = False,
    apply: Apply = apply,
) -> None:
    """Run the handlers of one stream's messages in the order of position.

    Onto the rows as they are, if all messages come after the stream's head; `anew` removes the
    stream's rows first, and then takes all its messages. Raises whatever `apply` raises.
    """
    if anew:
        for projection in registry.projections:
            await tx.of_stream(event_id).execute(projection.removal, (event_id,))
    for message in sorted(messages, key=position):
        await apply(registry, tx, event_id, message)
