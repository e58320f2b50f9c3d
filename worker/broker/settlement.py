"""Settles outcomes: dead letters first, then acks.

Promise: a rejected delivery is acked only after the broker has confirmed its dead letter. While the
broker confirms none (in an alarm), the other deliveries are acked nevertheless, because draining
its queues is what frees a broker's full disk.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from aiormq.abc import AbstractChannel

from worker.broker.life import Life
from worker.broker.publisher import IN_FLIGHT, in_flight
from worker.deliveries import Delivery, Outcome, Verdict
from worker.errors import BrokerRefused, SessionLost
from worker.tasks import end

# Confirms take milliseconds. A broker that sends none for this long is probably in an alarm.
BLOCKED_SECONDS = 5
# How long a drain waits for outstanding confirms, so that nothing is dead-lettered twice.
DRAIN_SECONDS = 1
RETRY_SECONDS = 1
# Limits the bodies of the dead letters in flight; a single larger one is published alone.
IN_FLIGHT_BYTES = 16 * 1024 * 1024

OnBlocked = Callable[[BrokerRefused | None], None]
"""Called with the reason when dead letters cannot be published, and with None when they can."""
OnSettledLate = Callable[[Sequence[Outcome]], None]
"""Called with outcomes that were blocked when the rest of their batch was settled."""


class Settlement:
    """Settles the deliveries of one channel within `async with`."""

    def __init__(
        self,
        channel: AbstractChannel,
        dead_letter: Callable[[Outcome], Awaitable[None]],
        life: Life,
        window: int,
        on_blocked: OnBlocked,
        on_settled_late: OnSettledLate,
    ) -> None:
        """Ack on the channel that delivers; `dead_letter` returns when its publish is confirmed.

        `window` is the most deliveries of one queue that may be unacked.
        """
        self._channel = channel
        self._publish_confirmed = dead_letter
        self._life = life
        self._window = window
        self._on_blocked = on_blocked
        self._on_settled_late = on_settled_late
        # Rejected outcomes by delivery tag, in the order in which they are published.
        self._unconfirmed: dict[int, Outcome] = {}
        # Tags that `settle` no longer waits for: the publishing task acks them on the confirm.
        self._left: set[int] = set()
        self._has_work = asyncio.Event()
        # Set when `settle` need not wait: nothing is unconfirmed, or it is blocked.
        self._need_not_wait = asyncio.get_running_loop().create_future()
        self._progressed_at = 0.0
        self._blocked_because: BrokerRefused | None = None
        self._has_full_prefetch = False

    async def __aenter__(self) -> Self:
        """Start the task that publishes dead letters."""
        self._publishing = asyncio.create_task(self._publish())
        self._publishing.add_done_callback(self._life.end_with)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave unconfirmed deliveries unacked, to the broker."""
        await end(self._publishing)

    async def settle(
        self, outcomes: Sequence[Outcome], *, are_first: bool = True
    ) -> Sequence[Outcome]:
        """Dead-letter the rejected deliveries, wait for the confirms, then ack all with one frame.

        The outcomes are those of one batch, in the order of delivery. `are_first` says that every
        earlier delivery has been settled; if not, each is acked with a frame of its own. Returns
        those that are settled: all but the rejected ones whose dead letters are blocked, or still
        unconfirmed in a drain. Raises `SessionLost` if the session ends first. What is not acked is
        redelivered, and the log recognizes it.
        """
        if rejected := [o for o in outcomes if o.verdict is Verdict.REJECTED]:
            await self._await_dead_letters(rejected)
        if are_first and not self._unconfirmed:
            await self._ack(outcomes[-1].delivery.tag, multiple=True)
            return outcomes
        self._left = set(self._unconfirmed)
        settled = [outcome for outcome in outcomes if outcome.delivery.tag not in self._left]
        for outcome in settled:
            # One by one, because `multiple` would also ack earlier ones that wait for confirms.
            await self._ack(outcome.delivery.tag)
        return settled

    @property
    def unconfirmed(self) -> list[Delivery]:
        """The deliveries whose dead letters have not been confirmed."""
        return [outcome.delivery for outcome in self._unconfirmed.values()]

    async def _await_dead_letters(self, rejected: Sequence[Outcome]) -> None:
        """Pass them to the publishing task, and wait while it makes progress."""
        self._unconfirmed.update((outcome.delivery.tag, outcome) for outcome in rejected)
        self._has_work.set()
        if self._blocked_because:
            self._block(self._blocked_because)
            return
        self._need_not_wait = asyncio.get_running_loop().create_future()
        if not self._life.drains:
            await self._life.wait(self._need_not_wait)
        if self._life.drains:
            await asyncio.wait({self._need_not_wait}, timeout=DRAIN_SECONDS)

    async def _publish(self) -> None:
        """Publish dead letters, many at once, until the session ends."""
        most = IN_FLIGHT
        with suppress(SessionLost):
            while True:
                await self._has_work.wait()
                refusals = await self._publish_together(self._next(most))
                if refusals:
                    # The dead-letter queue is full or gone, or a permission is missing. Ending the
                    # session would cost all other unacked messages a delivery.
                    self._block(refusals[0])
                    await asyncio.sleep(RETRY_SECONDS)
                    self._life.require()
                elif most == IN_FLIGHT or not self._unconfirmed:
                    self._block(None)
                # After a refusal, one is enough to find out whether the broker accepts them again.
                most = 1 if refusals else IN_FLIGHT

    async def _publish_together(self, outcomes: Sequence[Outcome]) -> list[BrokerRefused]:
        """Publish these together; return the reasons for those that the broker refused."""
        now = asyncio.get_running_loop().time
        self._progressed_at = now()
        async with in_flight(map(self._dead_letter, outcomes)) as publishing:
            while not publishing.done():
                seconds = self._progressed_at + BLOCKED_SECONDS - now()
                if seconds <= 0 and not self._blocked_because:
                    self._block(_silent())
                await asyncio.wait({publishing}, timeout=None if self._blocked_because else seconds)
            return [refusal for refusal in publishing.result() if refusal]

    def _next(self, most: int) -> list[Outcome]:
        """Return the outcomes to publish together: at least one, otherwise within the bounds."""
        outcomes: list[Outcome] = []
        size = 0
        for outcome in self._unconfirmed.values():
            size += len(outcome.delivery.body)
            if outcomes and (len(outcomes) == most or size > IN_FLIGHT_BYTES):
                break
            outcomes.append(outcome)
        return outcomes

    async def _dead_letter(self, outcome: Outcome) -> BrokerRefused | None:
        """Publish one, and ack it if `settle` no longer waits; return why the broker refused it."""
        tag = outcome.delivery.tag
        try:
            await self._publish_confirmed(outcome)
        except SessionLost as error:
            self._life.lose(error.message)
            raise
        except BrokerRefused as error:
            # Move it behind the others, because the fault may lie in this one alone.
            self._unconfirmed[tag] = self._unconfirmed.pop(tag)
            return error
        self._progressed_at = asyncio.get_running_loop().time()
        if tag in self._left:
            await self._ack(tag)
            self._on_settled_late([outcome])
        # Only after the ack: while it is listed here, `settle` acks nothing with `multiple`.
        del self._unconfirmed[tag]
        if not self._unconfirmed:
            self._has_work.clear()
            self._release()
        return None

    async def _ack(self, tag: int, *, multiple: bool = False) -> None:
        with self._life.depends_on_channel():
            await self._channel.basic_ack(tag, multiple=multiple)

    def _block(self, reason: BrokerRefused | None) -> None:
        """Note why dead letters are blocked, or None if they are not; report a change."""
        was_blocked, had_full_prefetch = self._blocked_because, self._has_full_prefetch
        is_full = had_full_prefetch or self._has_full_window()
        self._blocked_because = reason
        self._has_full_prefetch = reason is not None and is_full
        if reason is not None:
            self._release()
        if (reason is None) != (was_blocked is None) or self._has_full_prefetch > had_full_prefetch:
            self._on_blocked(self._holding_up_all(reason) if reason and is_full else reason)

    def _holding_up_all(self, reason: BrokerRefused) -> BrokerRefused:
        return BrokerRefused(
            f"{reason.message} Rejected messages fill the prefetch ({self._window:,}), so the "
            "messages behind them wait, too.",
            reason.hint,
        )

    def _has_full_window(self) -> bool:
        if len(self._unconfirmed) < self._window:
            return False
        by_queue = Counter(each.delivery.partition for each in self._unconfirmed.values())
        return max(by_queue.values()) >= self._window

    def _release(self) -> None:
        if not self._need_not_wait.done():
            self._need_not_wait.set_result(None)


def _silent() -> BrokerRefused:
    return BrokerRefused(
        f"The broker has not confirmed a dead letter for {BLOCKED_SECONDS} seconds; it may be in "
        "an alarm.",
        "see 'rabbitmq-diagnostics alarms'.",
    )
