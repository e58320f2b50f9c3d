"""The dead-letter queue as an operator's command holds it: looking, requeueing, discarding.

Promise: at every moment a message is in at least one queue, and those that are neither requeued
nor discarded are in their order again when a command ends well.
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
from worker.broker.connection import BrokerAddress, connection, is_loss, sentence
from worker.broker.dead_letter_lock import acquire, lock_of, release
from worker.broker.dead_letters import DeadLetter
from worker.broker.pages import ANSWER_SECONDS, Pages
from worker.broker.permissions import DEFAULT_EXCHANGE, NotPermitted, Permissions, requiring
from worker.broker.publisher import Publisher, in_flight
from worker.broker.topology import Topology
from worker.errors import BrokerRefused, SessionLost
from worker.tasks import in_time

NAME = "projection-worker dead-letters"
# A message that is rejected this often needs another handler, or another publisher.
MAX_REQUEUES = 3
# Confirms take milliseconds; a broker in an alarm sends none.
CONFIRM_SECONDS = 30
# How long an interrupted requeue waits for confirms that are on their way.
DRAIN_SECONDS = 1
# How long a command that fails waits for the broker to have all its acks.
ABANDON_SECONDS = 5
AGAIN = "run the command again: for the worker, a message that comes twice is a duplicate."


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
        """Return whether a dead letter is meant."""
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
"""Hears of each letter that is done, with the names of what had to be left out of it."""


class DeadLetterQueue:
    """The dead letters that there were when it was opened."""

    def __init__(self, pages: Pages, count: int, publisher: Publisher, work_queue: str) -> None:
        """Read this many letters; send what is requeued back to the worker's queue."""
        self._pages = pages
        self._publisher = publisher
        self._work_queue = work_queue
        self._confirmed_at = 0.0
        self.count = count
        """How many there were; what is dead-lettered meanwhile is not looked at."""

    async def pages(self, selection: Selection) -> AsyncIterator[list[DeadLetter]]:
        """Yield the selected ones, oldest first, as many at a time as are held in memory.

        Raises `SessionLost` if the connection ends.
        """
        number = 0
        while page := await self._next_page(number):
            letters = [DeadLetter.of(number + place, each) for place, each in enumerate(page, 1)]
            number += len(page)
            yield [letter for letter in letters if selection.takes(letter)]

    async def letters(self, selection: Selection) -> AsyncIterator[DeadLetter]:
        """Yield the selected ones, oldest first, one at a time; raises what `pages` raises."""
        async for page in self.pages(selection):
            for letter in page:
                yield letter

    async def finish(self) -> None:
        """See that those that are left come back in their order.

        Raises `BrokerRefused` if not all of them could be read.
        """
        hint = "none is lost; the last ones may be there still: run the command again."
        with _told("the dead letters were put back", hint):
            await self._pages.finish()
        if missing := self._pages.missing:
            raise BrokerRefused(
                f"{missing:,} of {self.count:,} dead letters could not be read: another program "
                "holds them, or has removed them.",
                "run the command again when that program has ended.",
            )

    async def abandon(self) -> None:
        """Let those that are left come back in any order, if the connection still stands."""
        with suppress(SessionLost, AMQPError), _told("the dead letters were let go", AGAIN):
            await in_time(self._pages.flush(), ABANDON_SECONDS)

    async def discard(self, letters: Sequence[DeadLetter], on_done: OnDone) -> None:
        """Remove letters of the last page for good."""
        for letter in letters:
            await self._remove(letter)
            on_done(letter, [])

    async def requeue(self, letters: Sequence[DeadLetter], on_done: OnDone) -> None:
        """Send letters of one page back to the worker's queue together, and then remove them.

        No other queue gets them. Each is removed once the broker has confirmed it. Raises
        `BrokerRefused` or `SessionLost` if some are not confirmed: those stay.
        """
        async with in_flight(self._requeue(letter, on_done) for letter in letters) as requeueing:
            try:
                await self._confirms(requeueing)
            except asyncio.CancelledError:
                # What is confirmed by then needs no second requeue, and is counted.
                await asyncio.wait({requeueing}, timeout=DRAIN_SECONDS)
                raise
            for refusal in requeueing.result():
                if refusal is not None:
                    raise refusal

    async def _confirms(self, requeueing: asyncio.Future[list[BrokerRefused | None]]) -> None:
        """Wait until all are confirmed, as long as confirms come."""
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
        wanted = known.of_the_publisher(letter.headers)
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
            # The others are in flight: those that are confirmed have to be removed.
            return error
        self._confirmed_at = asyncio.get_running_loop().time()
        await self._remove(letter)
        left_out = sorted((wanted.keys() - headers) | (letter.properties.keys() - properties))
        on_done(letter, left_out)
        return None

    async def _remove(self, letter: DeadLetter) -> None:
        again = "the last ones may still be there: see 'dead-letters list'."
        with _told(f"dead letter {letter.name} was removed", again):
            await self._pages.ack(letter.delivered)

    async def _next_page(self, seen: int) -> list[DeliveredMessage]:
        with _told(f"the dead letters after the first {seen:,} were read", "run it again."):
            return await self._pages.next()

    async def _publish(
        self, letter: DeadLetter, headers: dict[str, object], properties: dict[str, object]
    ) -> None:
        try:
            with _told(f"message {letter.name} was requeued; it may be in both queues", AGAIN):
                await self._publisher.publish(
                    letter.body,
                    # The default exchange: to the queue of this name, and to no other.
                    routing_key=self._work_queue,
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
                "see that the queue is there and not full (projection-worker check).",
            ) from error


@contextmanager
def _told(what: str, hint: str) -> Iterator[None]:
    """Say what was being done when the connection ended, or the broker did not answer."""
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
    except (Exception, asyncio.CancelledError) as error:
        if not is_loss(error):
            raise
        raise SessionLost(
            f"The connection ended while {what} ({sentence(error)}).", hint
        ) from error


@asynccontextmanager
async def dead_letter_queue(
    address: BrokerAddress, topology: Topology
) -> AsyncIterator[DeadLetterQueue]:
    """Hold the dead letters; after the block, those that are left are in their places again.

    If the block raises, they are in the queue, but perhaps in another order.

    Raises what `connection` raises, and `BrokerRefused` if there is no such queue, the user may not
    read it, or another command or program reads it.
    """
    # What `requeue` needs, too: who may only look is not refused for that.
    needed = Permissions(
        configure=(lock_of(topology.dead_letters),),
        write=(DEFAULT_EXCHANGE,),
        read=(topology.dead_letters,),
    )
    async with connection(address, NAME) as opened:
        with requiring(needed, address, f"read queue {topology.dead_letters!r}"):
            with _told("the dead letters were opened", "run the command again."):
                lock, count = await in_time(_open(opened, topology), ANSWER_SECONDS)
            pages = Pages(opened, topology.dead_letters, count)
            publisher = Publisher(opened, "", address, needed)
            queue = DeadLetterQueue(pages, count, publisher, topology.queue)
            try:
                yield queue
            except BaseException:
                await queue.abandon()
                raise
            await queue.finish()
            if lock is not None:
                with _told("the dead letters were let go", "all is done."):
                    await in_time(release(lock), ANSWER_SECONDS)


async def _open(
    connection: AbstractConnection, topology: Topology
) -> tuple[AbstractQueue | None, int]:
    """Lock the dead letters; return the lock, and how many there are."""
    name = topology.dead_letters
    lock = await acquire(connection, name)
    try:
        async with connection.channel() as channel:
            queue = await channel.get_queue(name, ensure=True)
            if not queue.declaration_result.message_count:
                # Nothing will be read, and who may not read must hear of it all the same.
                await queue.get(fail=False)
    except ChannelNotFoundEntity as error:
        raise BrokerRefused(
            f"There is no queue {name!r} on the broker.",
            "make it with 'projection-worker topology apply', or set WORKER_QUEUE.",
        ) from error
    if consumers := queue.declaration_result.consumer_count:
        raise BrokerRefused(
            f"Another program consumes from queue {name!r} (consumers: {consumers}); nothing was "
            "changed.",
            "stop it, or run this command when it has ended; 'rabbitmqctl list_consumers' names "
            "its channel.",
        )
    return lock, queue.declaration_result.message_count or 0
