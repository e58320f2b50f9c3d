"""The dead-letter queue, held by an operator's command that lists, requeues or discards.

Promise: at every moment a message is in at least one queue, and after a command that succeeds, the
letters that it neither requeued nor discarded are in their original order.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

from aio_pika.abc import AbstractConnection, AbstractQueue
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused

from worker.broker import headers as known
from worker.broker.command_lock import acquire, lock_of, release
from worker.broker.connection import BrokerAddress, connection, is_loss, sentence
from worker.broker.dead_letters import DeadLetter
from worker.broker.pages import ANSWER_SECONDS, Pages
from worker.broker.permissions import DEFAULT_EXCHANGE, NotPermitted, Permissions, requiring
from worker.broker.publisher import Publisher, in_flight
from worker.broker.topology import Topology
from worker.errors import BrokerRefused, SessionLost
from worker.plurals import counted
from worker.tasks import in_time

NAME = "projection-worker dead-letters"
# A message that is rejected this often needs a fix in its handler or its publisher.
MAX_REQUEUES = 3
# Confirms take milliseconds; a broker in an alarm sends none.
CONFIRM_SECONDS = 30
# How long an interrupted requeue waits for outstanding confirms.
DRAIN_SECONDS = 1
# How long a command that fails waits until the broker has all its acks.
ABANDON_SECONDS = 5
AGAIN = "run the command again: the worker treats a message that comes twice as a duplicate."


@dataclass(frozen=True, slots=True)
class Selection:
    """Criteria for dead letters: a letter matches if it meets every one that is set."""

    id: str | None = None
    """The message's own id, or the AMQP message_id."""
    reason: str | None = None
    kind: str | None = None
    rejected_before: datetime | None = None
    """A letter whose time is unknown does not match."""

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter meets all criteria."""
        if self.id is not None and self.id not in (letter.id, letter.message_id):
            return False
        if self.reason is not None and self.reason != letter.reason:
            return False
        if self.kind is not None and self.kind != letter.kind:
            return False
        if self.rejected_before is None:
            return True
        return letter.rejected_at is not None and letter.rejected_at < self.rejected_before


OnDone = Callable[[DeadLetter, list[str]], None]
"""Called with each finished letter, and the headers and properties that could not be resent."""


class DeadLetterQueue:
    """The dead letters that were in the queue when it was opened."""

    def __init__(self, pages: Pages, count: int, publisher: Publisher, topology: Topology) -> None:
        """Prepare to read `count` letters; requeued ones go back to the queue of this topology."""
        self._pages = pages
        self._publisher = publisher
        self._work_queue = topology.queue
        self._has_partitions = topology.partitions is not None
        self._confirmed_at = 0.0
        self.count = count
        """How many there were at the start; later ones are not read."""

    async def pages(self, selection: Selection) -> AsyncIterator[list[DeadLetter]]:
        """Yield the selected letters of each page, oldest first.

        Raises `SessionLost` if the connection ends.
        """
        number = 0
        while page := await self._next_page(number):
            letters = [DeadLetter.of(number + place, each) for place, each in enumerate(page, 1)]
            number += len(page)
            yield [letter for letter in letters if selection.matches(letter)]

    async def letters(self, selection: Selection) -> AsyncIterator[DeadLetter]:
        """Yield the selected letters one at a time, oldest first; raises what `pages` raises."""
        async for page in self.pages(selection):
            for letter in page:
                yield letter

    async def finish(self) -> None:
        """Return the remaining letters to the queue in their original order.

        Raises `BrokerRefused` if not all of them could be read.
        """
        hint = "none is lost, but the last ones may still be in the queue: run the command again."
        with _while("the dead letters were returned to the queue", hint):
            await self._pages.finish()
        if missing := self._pages.missing:
            raise BrokerRefused(
                f"{missing:,} of {counted(self.count, 'dead letter')} could not be read: another "
                "program holds them, or has removed them.",
                "run the command again when that program has ended.",
            )

    async def abandon(self) -> None:
        """Return the remaining letters to the queue in any order, if the connection is still up."""
        with suppress(SessionLost, AMQPError), _while("the dead letters were released", AGAIN):
            await in_time(self._pages.flush(), ABANDON_SECONDS)

    async def discard(self, letters: Sequence[DeadLetter], on_done: OnDone) -> None:
        """Delete letters of one page."""
        for letter in letters:
            await self._remove(letter)
            on_done(letter, [])

    async def requeue(self, letters: Sequence[DeadLetter], on_done: OnDone) -> None:
        """Send letters of one page back to the worker's queue together, and to no other queue.

        Each letter is removed once the broker has confirmed its message. Raises `BrokerRefused` or
        `SessionLost` if some are not confirmed; those stay dead letters.
        """
        async with in_flight(self._requeue(letter, on_done) for letter in letters) as requeueing:
            try:
                await self._confirms(requeueing)
            except asyncio.CancelledError:
                # Letters confirmed by then need no second requeue, and are counted.
                await asyncio.wait({requeueing}, timeout=DRAIN_SECONDS)
                raise
            for refusal in requeueing.result():
                if refusal is not None:
                    raise refusal

    async def _confirms(self, requeueing: asyncio.Future[list[BrokerRefused | None]]) -> None:
        """Wait until all are confirmed; raises `SessionLost` when confirms stop coming."""
        now = asyncio.get_running_loop().time
        self._confirmed_at = now()
        while not requeueing.done():
            seconds = self._confirmed_at + CONFIRM_SECONDS - now()
            if seconds <= 0:
                raise SessionLost(
                    f"The broker has not confirmed a requeued message for {CONFIRM_SECONDS} "
                    "seconds; it may be in an alarm.",
                    AGAIN,
                )
            await asyncio.wait({requeueing}, timeout=seconds)

    async def _requeue(self, letter: DeadLetter, on_done: OnDone) -> BrokerRefused | None:
        """Requeue a letter; return why the broker did not take it."""
        wanted = known.publisher_headers(letter.headers)
        headers = known.sendable(
            wanted
            | {
                known.REQUEUE_COUNT: letter.requeue_count + 1,
                known.ROUTING_KEY: letter.routing_key,
            }
        )
        properties = known.sendable_properties(letter.properties)
        try:
            await self._publish(letter, headers, properties)
        except BrokerRefused as error:
            # Returned, not raised: the others are in flight, and must be removed if confirmed.
            return error
        self._confirmed_at = asyncio.get_running_loop().time()
        await self._remove(letter)
        left_out = sorted((wanted.keys() - headers) | (letter.properties.keys() - properties))
        on_done(letter, left_out)
        return None

    async def _remove(self, letter: DeadLetter) -> None:
        hint = "the last ones may still be in the queue: see 'dead-letters list'."
        with _while(f"dead letter {letter.name} was removed", hint):
            await self._pages.ack(letter.delivered)

    async def _next_page(self, seen: int) -> list[DeliveredMessage]:
        reading = f"the dead letters after the first {seen:,} were read"
        with _while(reading, "run the command again."):
            return await self._pages.next()

    async def _publish(
        self, letter: DeadLetter, headers: dict[str, object], properties: dict[str, object]
    ) -> None:
        try:
            with _while(f"message {letter.name} was requeued; it may be in both queues", AGAIN):
                await self._publisher.publish(
                    letter.body,
                    # The default exchange routes to the queue of this name, and to no other; the
                    # exchange of partitions to the one in which the message was.
                    routing_key=letter.routing_key if self._has_partitions else self._work_queue,
                    content_type=known.sendable_text(letter.content_type),
                    headers=headers,
                    properties=properties,
                )
        except NotPermitted:
            raise
        except BrokerRefused as error:
            raise BrokerRefused(
                f"The broker did not take message {letter.name} back into queue "
                f"{self._work_queue!r}; it stays a dead letter.",
                "check that the queue exists and is not full (projection-worker check).",
            ) from error


@contextmanager
def _while(doing: str, hint: str) -> Iterator[None]:
    """Raise `SessionLost`, with what was being done, if the connection ends or no answer comes."""
    try:
        yield
    except ChannelAccessRefused:
        # The connection is still up; `dead_letter_queue` reports the missing permission.
        raise
    except SessionLost as error:
        raise SessionLost(f"The connection ended while {doing}.", hint) from error
    except TimeoutError as error:
        raise SessionLost(
            f"The broker did not answer in time while {doing}; it may be in an alarm.", hint
        ) from error
    except (Exception, asyncio.CancelledError) as error:
        if not is_loss(error):
            raise
        raise SessionLost(
            f"The connection ended while {doing} ({sentence(error)}).", hint
        ) from error


@asynccontextmanager
async def dead_letter_queue(
    address: BrokerAddress, topology: Topology
) -> AsyncIterator[DeadLetterQueue]:
    """Hold the dead letters; after the block, the remaining ones are back in their original order.

    If the block raises, they are back in the queue, but perhaps in another order.

    Raises what `connection` raises, and `BrokerRefused` if there is no such queue, the user may not
    read it, or another command or program reads it.
    """
    # The hint includes what `requeue` needs. A user who may only read can still list.
    needed = Permissions(
        configure=(lock_of(topology.dead_letters),),
        write=(DEFAULT_EXCHANGE if topology.partitions is None else topology.queue,),
        read=(topology.dead_letters,),
    )
    async with connection(address, NAME) as opened:
        with requiring(needed, address, f"read queue {topology.dead_letters!r}"):
            with _while("the dead letters were opened", "run the command again."):
                lock, count = await in_time(_open(opened, topology), ANSWER_SECONDS)
            pages = Pages(opened, topology.dead_letters, count)
            exchange = "" if topology.partitions is None else topology.queue
            publisher = Publisher(opened, exchange, address, needed)
            queue = DeadLetterQueue(pages, count, publisher, topology)
            try:
                yield queue
            except BaseException:
                await queue.abandon()
                raise
            await queue.finish()
            if lock is not None:
                with _while("the dead letters were released", "nothing to do: all is done."):
                    await in_time(release(lock), ANSWER_SECONDS)


async def _open(
    connection: AbstractConnection, topology: Topology
) -> tuple[AbstractQueue | None, int]:
    """Lock the dead letters; return the lock and the number of letters."""
    name = topology.dead_letters
    lock = None
    with suppress(ChannelAccessRefused):  # A user who may only read can still list.
        lock = await acquire(connection, name, f"holds the dead letters in queue {name!r}")
    try:
        async with connection.channel() as channel:
            queue = await channel.get_queue(name, ensure=True)
            if not queue.declaration_result.message_count:
                # An empty queue will not be read, so only this finds a missing read permission.
                await queue.get(fail=False)
    except ChannelNotFoundEntity as error:
        raise BrokerRefused(
            f"There is no queue {name!r} on the broker.",
            "create it with 'projection-worker topology apply', or set WORKER_QUEUE.",
        ) from error
    if consumers := queue.declaration_result.consumer_count:
        raise BrokerRefused(
            f"Another program consumes from queue {name!r} (consumers: {consumers}); nothing was "
            "changed.",
            "stop it, or run this command after it has ended; 'rabbitmqctl list_consumers' names "
            "its channel.",
        )
    return lock, queue.declaration_result.message_count or 0
