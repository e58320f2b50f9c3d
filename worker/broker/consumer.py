"""The consumer's end of the broker: turns what arrives into batches.

Knows no SQLite and no kinds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from aiormq.abc import AbstractChannel

from worker.broker.intake import Intake
from worker.broker.life import Life
from worker.broker.quarantine import Quarantine
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

    Begins in quarantine: a message that is suspected to kill its consumers is out alone.
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
        self._quarantine = Quarantine(channel, life, queue)
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
        """Let the broker deliver, in quarantine at first."""
        await self._quarantine.begin(self._reception.prefetch)

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
        """Settle a batch, as `Settlement.settle` does; end the quarantine past the last suspect."""
        if self._quarantine.is_on and not any(each.delivery.is_suspect for each in outcomes):
            await self._quarantine.end()
        settled = await self._settlement.settle(outcomes)
        self._intake.settled(settled)
        if len(settled) < len(outcomes):
            # A suspect that was decided has killed nobody; while its dead letter is blocked, it
            # must not hold up all others.
            await self._quarantine.end()
        return settled
