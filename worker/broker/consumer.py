"""The consumer's end of the broker: turns what arrives into batches.

Knows no SQLite and no kinds. Promise: whatever kills the process, or the client library before any
code of ours, takes no neighbour along more than twice.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from aiormq.abc import AbstractChannel, DeliveredMessage

from worker.broker.intake import Intake
from worker.broker.life import Life
from worker.broker.settlement import Settlement
from worker.deliveries import Delivery, Outcome
from worker.messages import Arrival


@dataclass(frozen=True, slots=True)
class Reception:
    """How deliveries are received."""

    decode: Callable[[Delivery], Arrival]
    """Called with each, in the order in which they come."""
    prefetch: int
    """Unacked deliveries that the broker grants."""
    batch_size: int
    """The most that are given at once."""


class Consumer:
    """Batches of whatever has arrived; an iterator that ends when it drains.

    Begins with a window of one message, and opens it after the first one that nobody is known to
    have died of: a suspect is out alone, and the broker's delivery limit takes it alone.
    `async for batch in consumer` raises `SessionLost` when the session has ended otherwise.
    """

    def __init__(
        self,
        intake: Intake,
        channel: AbstractChannel,
        settlement: Settlement,
        life: Life,
        queue: str,
        reception: Reception,
    ) -> None:
        """Consume on a channel whose connection has this intake; nothing is asked of it yet."""
        self._intake = intake
        self._channel = channel
        self._settlement = settlement
        self._life = life
        self._queue = queue
        self._reception = reception
        self._narrow_tag: str | None = None
        # Waited for between two batches, so not by way of tasks that wait for one thing each.
        life.call_when_it_ends(intake.arrived.set)

    async def has_rival(self) -> bool:
        """Return whether another consumer is active on the queue; asked before `start`.

        The broker counts the active consumer of a queue with a single active consumer, and none of
        those that wait.
        """
        declared = await self._channel.queue_declare(self._queue, passive=True)
        return bool(declared.consumer_count)

    async def start(self) -> None:
        """Let the broker deliver, one message at a time."""
        # Two consumers, of which a queue with a single active consumer serves the narrow one until
        # it is cancelled. Both from the start, so that no other worker's stands between them. Where
        # they have to wait, RabbitMQ 3 activates the first one, and RabbitMQ 4 the one with the
        # higher priority, or else with the larger prefetch.
        self._narrow_tag = await self._consume(prefetch=1, priority=1)
        await self._consume(self._reception.prefetch, priority=0)

    def drain(self) -> None:
        """Take no more; what waits is left to the broker."""
        self._life.drain()

    async def drains(self, *, within_seconds: float) -> bool:
        """Wait for at most this long; return whether the worker drains.

        Raises `SessionLost` if the session ends meanwhile.
        """
        await self._life.wait(seconds=within_seconds)
        return self._life.drains

    def __aiter__(self) -> Self:
        """Iterate over batches."""
        return self

    async def __anext__(self) -> list[Arrival]:
        """Return what has arrived, at least one and at most a batch."""
        while not self._life.drains:
            self._life.require()
            await self._give_back()
            if batch := self._intake.take(self._reception.batch_size):
                return batch
            self._intake.arrived.clear()
            await self._intake.arrived.wait()
        raise StopAsyncIteration

    async def _give_back(self) -> None:
        """Return to the queue what arrived while there was no room for it.

        Before anything that came later is taken, and acked together with all that came before.
        """
        with self._life.depends_on_channel():
            for tag in self._intake.to_give_back():
                await self._channel.basic_nack(tag, requeue=True)

    def look_ahead(self) -> None:
        """Decode the next batch, as far as it has arrived, so that it is ready when it is taken."""
        self._intake.look_ahead(self._reception.batch_size)

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        """Settle a batch, as `Settlement.settle` does; open the window past the last suspect."""
        is_narrow = self._narrow_tag is not None
        if is_narrow and not any(outcome.delivery.is_suspect for outcome in outcomes):
            await self._widen()
        settled = await self._settlement.settle(outcomes)
        self._intake.settled(settled)
        if len(settled) < len(outcomes):
            # A suspect that was decided has killed nobody; while its dead letter is blocked, it
            # must not hold up all others.
            await self._widen()
        return settled

    async def _widen(self) -> None:
        """Leave the queue to the consumer with the wide window, if that has not been done."""
        if self._narrow_tag is None or self._life.drains:
            return
        # While its only delivery is not acked yet: no further one can be on its way to the narrow
        # consumer, and come back counted as lost.
        narrow_tag, self._narrow_tag = self._narrow_tag, None
        cancelling = asyncio.create_task(self._cancel(narrow_tag))
        cancelling.add_done_callback(self._life.end_with)
        # Not longer than until a drain: a broker that has fallen silent answers nothing, and to
        # cancel the request would close the channel, on which there is something to ack.
        await self._life.wait(cancelling)

    async def _cancel(self, tag: str) -> None:
        with self._life.depends_on_channel():
            await self._channel.basic_cancel(tag)

    async def _consume(self, prefetch: int, priority: int) -> str:
        # The broker applies a prefetch to the consumers that begin after it
        # (rabbitmq.com/docs/consumer-prefetch).
        await self._channel.basic_qos(prefetch_count=prefetch)
        answer = await self._channel.basic_consume(
            self._queue, _taken_already, arguments={"x-priority": priority}
        )
        return str(answer.consumer_tag)


async def _taken_already(_: DeliveredMessage) -> None:
    """Stand for what the library would do with a delivery, which the intake takes before."""
