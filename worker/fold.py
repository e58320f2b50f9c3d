"""All rules of order. The row of an event is the fold of its stream, in the order of position.

Rule 1: a message's position in its stream is (sequence, occurred_at, id), and nothing else.
Rule 2: a message before the stream's head is late; its stream is folded again.
Rule 3: a fold may begin with the rows that an earlier fold had at some position, if all new
messages of the stream come after that position.
From these follows the theorem: whatever the order of arrival, the rows are what the handlers make
of all messages in the order of position. Knows no SQL beyond "replace the rows of a stream", no
AMQP, and no kind.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic

from pydantic import ValidationError

from worker.messages import AnyMessage
from worker.registry import Registry
from worker.store.failures import Author, PlainAuthor
from worker.store.log import Position
from worker.store.streams import Snapshot, Stream
from worker.store.tables import Values, insertion
from worker.store.transaction import StoreTransaction

# Other tasks wait no longer than 50 milliseconds, some of which a piece of the log may take to be
# decoded, and a single message to be applied.
TURN_SECONDS = 0.005

Apply = Callable[[Registry, StoreTransaction, PlainAuthor, AnyMessage], Awaitable[None]]
"""Applies one message, as `apply` does."""


def position(message: AnyMessage) -> Position:
    """Return the message's place in its stream."""
    return (message.sequence, message.occurred_at, message.id)


def is_late(place: Position, head: Position | None) -> bool:
    """Return whether the stream's head, its last position so far, comes after a message's place."""
    return head is not None and place < head


class Addition:
    """What a batch adds to one stream."""

    __slots__ = ("bodies", "head", "messages", "newest_late", "snapshot", "stream")

    def __init__(self, stream: Stream) -> None:
        """Begin with a stream as it was after the last commit."""
        self.stream = stream
        self.head = stream.head
        self.snapshot = stream.snapshot
        """What to remember with the stream once the batch has committed."""
        self.messages: list[AnyMessage] = []
        """The new ones, in the order of arrival."""
        self.bodies: list[str] = []
        self.newest_late: Position | None = None
        """The last of the late messages; None if no message is late."""

    def accept(self, message: AnyMessage, body: str) -> bool:
        """Add a new message; return whether a message that follows it in the stream came first."""
        self.messages.append(message)
        self.bodies.append(body)
        place = position(message)
        if not is_late(place, self.head):
            self.head = place
            return False
        # Messages that are out of order only within the batch are sorted before they are applied.
        if is_late(place, self.stream.head):
            self.newest_late = max(place, self.newest_late or place)
        return True

    def result(self) -> Stream:
        """Return the stream as it is once the addition is applied."""
        stream = self.stream
        return Stream(stream.key, self.head, self.snapshot, stream.messages + len(self.messages))

    def follow_snapshot(self) -> None:
        """Add the new messages, none of which is late, to the tail of the remembered snapshot."""
        if self.snapshot is not None:
            self.snapshot = self.snapshot.followed_by(self.bodies)

    def usable_snapshot(self) -> Snapshot | None:
        """Return the remembered snapshot; None if a new message comes before its position."""
        snapshot = self.stream.snapshot
        if snapshot is None or min(map(position, self.messages)) < snapshot.position:
            return None
        return snapshot


class Turns:
    """Lets the other tasks of the event loop run while much is folded."""

    __slots__ = ("due_at",)

    def __init__(self) -> None:
        """Begin right after a turn."""
        self.due_at = monotonic() + TURN_SECONDS

    async def take(self) -> None:
        """Let the event loop turn."""
        await asyncio.sleep(0)
        self.due_at = monotonic() + TURN_SECONDS


def stored(
    registry: Registry, tx: StoreTransaction, event_id: str, bodies: Sequence[str]
) -> list[AnyMessage]:
    """Return messages of the log; raises `HandlersFailed` if one no longer fits its model."""
    # As `messages.decode`, which has let them into the log.
    read = registry.wire.validator.validate_json
    messages: list[AnyMessage] = []
    try:
        # Adds one after the other, so that it shows which one fails.
        messages.extend(map(read, bodies))
    except ValidationError as error:
        tx.register.raise_for_handler(error, _author(event_id, bodies[len(messages)]))
        raise
    return messages


def _author(event_id: str, body: str) -> Author:
    """Return the name of a message in the log that no longer fits its model."""
    try:
        raw = json.loads(body)
    except ValueError:
        raw = None
    named = {"id": "", "kind": ""} | (raw if isinstance(raw, dict) else {})
    return Author(event_id, named["id"], named["kind"])


def apply(
    registry: Registry, tx: StoreTransaction, author: PlainAuthor, message: AnyMessage
) -> Awaitable[None]:
    """Run the handler of a message; raises whatever the handler raises."""
    return registry.handlers[message.kind](tx.for_author(author), message)


async def fold(
    registry: Registry,
    tx: StoreTransaction,
    messages: Sequence[AnyMessage],
    turns: Turns,
    apply: Apply = apply,
) -> None:
    """Run the handlers of messages of one stream in the order of position.

    All of these messages must come after those whose fold the rows are. The event loop turns after
    every `TURN_SECONDS`, and the transaction is kept alive. Raises `HandlersFailed`, which names
    the message, if a handler fails.
    """
    for message in sorted(messages, key=position) if len(messages) > 1 else messages:
        author = (message.payload.event_id, message.id, message.kind)
        try:
            await apply(registry, tx, author, message)
        except BaseException as error:
            # Also SystemExit and the like: no message may end the process.
            tx.register.raise_for_handler(error, author)
            raise
        if monotonic() > turns.due_at:
            await tx.keep_alive()
            await turns.take()


async def replace_rows(
    registry: Registry, tx: StoreTransaction, event_id: str, rows: Mapping[str, Values]
) -> None:
    """Replace all rows of a stream with these (table -> values)."""
    stream = tx.for_author(Author(event_id))
    for projection in registry.projections:
        await stream.execute(projection.removal, (event_id,))
    for table, values in rows.items():
        await stream.execute(insertion(table, len(values)), values)
