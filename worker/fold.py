"""All rules of order. The row of an event is the fold of its stream, in the order of position.

Rule 1: a message's position in its stream is (sequence, occurred_at, id), and nothing else.
Rule 2: a message before the stream's head is late; its stream is folded anew.
From both follows the theorem: whatever the order of arrival, the handlers' last run over a stream
saw all its messages in the order of position. Knows no SQL beyond "remove the rows of a stream",
no AMQP, and no kind.
"""

from collections.abc import Iterable

from worker.messages import AnyMessage
from worker.registry import Registry
from worker.store.streams import Position
from worker.store.transaction import StoreTransaction


def position(message: AnyMessage) -> Position:
    """Give the message's place in its stream."""
    return (message.sequence, message.occurred_at, message.id)


def is_late(place: Position, head: Position | None) -> bool:
    """Tell whether the stream's head, its last position so far, comes after a message's place."""
    return head is not None and place < head


async def fold(
    registry: Registry,
    tx: StoreTransaction,
    event_id: str,
    messages: Iterable[AnyMessage],
    *,
    anew: bool = False,
) -> None:
    """Run the handlers of one stream's messages in the order of position.

    Onto the rows as they are, if all messages come after the stream's head; `anew` removes the
    stream's rows first, and then takes all its messages. Raises whatever a handler raises.
    """
    stream = tx.of_stream(event_id)
    if anew:
        for projection in registry.projections:
            await stream.execute(projection.removal, (event_id,))
    for message in sorted(messages, key=position):
        await registry.handlers[message.kind](stream, message)
