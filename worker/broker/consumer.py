"""The consumer: turns the broker's deliveries into batches.

It knows neither SQLite nor kinds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from aiormq.abc import AbstractChannel

from worker.broker.activity import Activity
from worker.broker.intake import Intake
from worker.broker.life import Life
from worker.broker.partitions import Ranking
from worker.broker.quarantine import Quarantine
from worker.broker.settlement import Settlement
from worker.deliveries import Delivery, Outcome
from worker.messages import Arrival


@dataclass(frozen=True, slots=True)
class Reception:
    """How deliveries are received."""

    decode: Callable[[Delivery], Arrival]
    """Called with each delivery, in the order of arrival."""
    prefetch: int
    """The most deliveries that may be unacked; with partitions, see `window_of`."""
    batch_size: int
    """The most deliveries in a batch."""
    ranking: Ranking = field(default_factory=lambda: Ranking(""))
    """How much this worker wants each partition; of no effect with one queue."""


class Consumer:
    """An iterator over batches of whatever has arrived; it ends when the worker drains.

    It begins in quarantine: a message that may have killed its consumers is delivered alone.
    `async for batch in consumer` raises `SessionLost` if the session is lost.
    """

    def __init__(
        self,
        intake: Intake,
        channel: AbstractChannel,
        settlement: Settlement,
        quarantine: Quarantine,
        life: Life,
        reception: Reception,
    ) -> None:
        """Prepare to consume on a channel whose connection has this intake; sends nothing yet.

        The prefetch of `reception` is that of each queue.
        """
        self._intake = intake
        self._channel = channel
        self._settlement = settlement
        self._quarantine = quarantine
        self._life = life
        self._reception = reception
        self._settled_since_resize: int | None = None
        """Set while the windows are smaller than the prefetch."""
        # One event for arrivals and for the end, because waiting for two would cost tasks for each
        # batch.
        life.call_when_it_ends(intake.arrived.set)

    async def start(self) -> None:
        """Let the broker deliver; the consumer starts in quarantine."""
        await self._quarantine.begin(self._reception.prefetch)

    def drain(self) -> None:
        """Take no more deliveries; those that wait are left to the broker."""
        self._life.drain()

    async def drains(self, *, within_seconds: float) -> bool:
        """Wait at most this long; return whether the worker drains.

        Raises `SessionLost` if the session is lost meanwhile.
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
            await self._fit_window()
            if batch := self._intake.take(self._reception.batch_size):
                self._quarantine.took(
                    {each.delivery.partition for each in batch},
                    is_suspect=batch[0].delivery.is_suspect,
                )
                return batch
            self._intake.arrived.clear()
            await self._intake.arrived.wait()
        raise StopAsyncIteration

    async def _fit_window(self) -> None:
        """Return to the queue the deliveries that arrived while there was no room for them.

        The broker counts each return as a lost delivery. So the windows shrink first, and the
        messages find room when they come again. They widen once as many have been settled as fit
        into all of them: then everything that was returned has come again.
        """
        windows = max(1, self._quarantine.attached)
        if (room := self._intake.room_for_returns()) is not None:
            self._settled_since_resize = 0
            # Until they have shrunk, the intake keeps no later delivery: the ack of a batch
            # includes all earlier deliveries.
            of_each = max(1, room // windows)
            await self._quarantine.resize(min(of_each, self._reception.prefetch))
            await self._give_back(self._intake.take_returns())
        elif (self._settled_since_resize or 0) > windows * self._reception.prefetch:
            self._settled_since_resize = None
            await self._quarantine.resize(self._reception.prefetch)

    async def _give_back(self, tags: Iterable[int]) -> None:
        with self._life.depends_on_channel():
            for tag in tags:
                await self._channel.basic_nack(tag, requeue=True)

    def look_ahead(self) -> None:
        """Decode as much of the next batch as has arrived, so that it is ready when it is taken."""
        self._intake.look_ahead(self._reception.batch_size)

    def activities(self) -> list[Activity]:
        """Return what the worker is doing on each partition."""
        return self._quarantine.activities(self._settlement.unconfirmed)

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        """Settle a batch as `Settlement.settle` does; end the quarantine after the last suspect."""
        self._intake.decided()
        if not outcomes[0].delivery.is_suspect:  # A suspect is alone.
            await self._quarantine.decided({each.delivery.partition for each in outcomes})
        # Tags rise with the order of delivery, and every earlier batch has been settled.
        oldest_tag = self._intake.oldest_tag
        are_first = oldest_tag is None or oldest_tag > outcomes[-1].delivery.tag
        settled = await self._settlement.settle(outcomes, are_first=are_first)
        self._intake.settled(settled)
        self._quarantine.settled()
        if self._settled_since_resize is not None:
            self._settled_since_resize += len(settled)
        if len(settled) < len(outcomes):
            # The worker has survived this suspect. While its dead letter is blocked, it must not
            # hold up all other messages.
            await self._quarantine.decided(
                {each.delivery.partition for each in outcomes}, with_suspects=True
            )
        return settled
