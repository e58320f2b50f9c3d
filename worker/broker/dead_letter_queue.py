"""The dead-letter queue as an operator's command holds it: looking, requeueing, discarding.

Promise: at every moment a message is in at least one queue, and those that are neither requeued
nor discarded are in their order again when a command ends well.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

from aio_pika import IncomingMessage
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused

from worker.broker import headers as known
from worker.broker.connection import LOST, BrokerAddress, closing, connection, sentence
from worker.broker.dead_letters import DeadLetter
from worker.broker.pages import Pages
from worker.broker.permissions import DEFAULT_EXCHANGE, NotPermitted, Permissions, requiring
from worker.broker.publisher import Publisher
from worker.broker.topology import Topology
from worker.errors import BrokerRefused, SessionLost
from worker.tasks import in_time

NAME = "projection-worker dead-letters"
# A message that is rejected this often needs another handler, or another publisher.
MAX_REQUEUES = 3
# Confirms take milliseconds; a broker in an alarm gives none.
CONFIRM_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant: those that match all that is given."""

    id: str | None = None
    """The message's own id, or the AMQP message_id."""
    reason: str | None = None
    kind: str | None = None
    rejected_before: datetime | None = None
    """One whose time is not known does not match."""

    def takes(self, letter: DeadLetter) -> bool:
        """Tell whether a dead letter is meant."""
        if self.id is not None and self.id not in (letter.id, letter.message_id):
            return False
        if self.reason is not None and self.reason != letter.reason:
            return False
        if self.kind is not None and self.kind != letter.kind:
            return False
        if self.rejected_before is None:
            return True
        return letter.rejected_at is not None and letter.rejected_at < self.rejected_before


class DeadLetterQueue:
    """The dead letters that there were when it was opened."""

    def __init__(self, pages: Pages, count: int, publisher: Publisher, work_queue: str) -> None:
        """Read so many letters; send what is requeued back to the worker's queue."""
        self._pages = pages
        self._publisher = publisher
        self._work_queue = work_queue
        self.count = count
        """How many there were; what is dead-lettered meanwhile is not looked at."""

    async def letters(self, selection: Selection) -> AsyncIterator[DeadLetter]:
        """Give the selected ones, oldest first, one at a time.

        Raises `SessionLost` if the connection ends.
        """
        number = 0
        while page := await self._next_page(number):
            for message in page:
                number += 1
                letter = DeadLetter.of(number, IncomingMessage(message))
                if selection.takes(letter):
                    yield letter

    async def finish(self) -> None:
        """See that those that are left come back in their order."""
        hint = "none is lost; the last ones may be there still: run the command again."
        with _told("the dead letters were put back", hint):
            await self._pages.finish()

    async def abandon(self) -> None:
        """Let those that are left come back in any order, if the connection still stands."""
        with suppress(*LOST):
            await self._pages.flush()

    async def discard(self, letter: DeadLetter) -> None:
        """Remove a letter that `letters` gave, for good."""
        again = "the last ones may still be there: see 'dead-letters list'."
        with _told(f"dead letter {letter.name} was discarded", again):
            await self._pages.ack(letter.tag)

    async def requeue(self, letter: DeadLetter) -> list[str]:
        """Send a letter that `letters` gave back to the worker's queue, and then remove it.

        No other queue gets it. Gives the names of headers and properties that cannot be sent
        again and were left out. Raises `BrokerRefused` or `SessionLost` if it is not confirmed:
        the letter stays then.
        """
        wanted = known.of_the_publisher(letter.headers)
        headers = known.sendable(
            wanted
            | {
                known.REQUEUE_COUNT: letter.requeue_count + 1,
                known.ROUTING_KEY: letter.routing_key,
            }
        )
        properties = known.sendable_properties(letter.properties)
        await self._publish(letter, headers, properties)
        await self.discard(letter)
        return sorted((wanted.keys() - headers) | (letter.properties.keys() - properties))

    async def _next_page(self, seen: int) -> list[DeliveredMessage]:
        with _told(f"the dead letters after the first {seen:,} were read", "run it again."):
            return await self._pages.next()

    async def _publish(
        self, letter: DeadLetter, headers: dict[str, object], properties: dict[str, object]
    ) -> None:
        again = "run the command again: for the worker, a message that comes twice is a duplicate."
        try:
            with _told(f"message {letter.name} was requeued; it may be in both queues", again):
                publishing = self._publisher.publish(
                    letter.body,
                    # The default exchange: to the queue of this name, and to no other.
                    routing_key=self._work_queue,
                    content_type=known.sendable_text(letter.content_type),
                    headers=headers,
                    properties=properties,
                )
                await in_time(publishing, CONFIRM_SECONDS)
        except NotPermitted:
            raise
        except BrokerRefused as error:
            raise BrokerRefused(
                f"The broker did not take message {letter.name} back into queue "
                f"{self._work_queue!r}; it stays a dead letter.",
                "see that the queue is there and not full (projection-worker check).",
            ) from error


@contextmanager
def _told(what: str, hint: str) -> Iterator[None]:
    try:
        yield
    except ChannelAccessRefused:
        # The connection stands; `dead_letter_queue` tells of it.
        raise
    except SessionLost as error:
        raise SessionLost(f"The connection ended while {what}.", hint) from error
    except TimeoutError as error:
        raise SessionLost(
            f"The broker did not answer in time while {what}; it may be in an alarm.", hint
        ) from error
    except LOST as error:
        raise SessionLost(
            f"The connection ended while {what} ({sentence(error)}).", hint
        ) from error


@asynccontextmanager
async def dead_letter_queue(
    address: BrokerAddress, topology: Topology
) -> AsyncIterator[DeadLetterQueue]:
    """Hold the dead letters; after the block, those that are left are in their places again.

    If the block raises, they are in the queue, and their order may be another.

    Raises what `connection` raises, and `BrokerRefused` if there is no such queue or the user may
    not read it.
    """
    # What `requeue` needs, too: who may only look is not refused for that.
    needed = Permissions(write=(DEFAULT_EXCHANGE,), read=(topology.dead_letters,))
    async with connection(address, NAME) as opened:
        channel = await opened.channel()
        try:
            with requiring(needed, address, f"read queue {topology.dead_letters!r}"):
                queue = await _open(channel, topology, Publisher(opened, "", address, needed))
                try:
                    yield queue
                except BaseException:
                    await queue.abandon()
                    raise
                await queue.finish()
        finally:
            # What was delivered and not acked goes back to the queue.
            await closing(channel)


async def _open(
    channel: AbstractChannel, topology: Topology, publisher: Publisher
) -> DeadLetterQueue:
    try:
        queue = await channel.get_queue(topology.dead_letters, ensure=True)
    except ChannelNotFoundEntity as error:
        raise BrokerRefused(
            f"There is no queue {topology.dead_letters!r} on the broker.",
            "make it with 'projection-worker topology apply', or set WORKER_QUEUE.",
        ) from error
    count = queue.declaration_result.message_count or 0
    pages = Pages(await channel.get_underlay_channel(), queue.name, count)
    return DeadLetterQueue(pages, count, publisher, topology.queue)
