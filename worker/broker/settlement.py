"""Outcomes become settlement here: dead letters, then acks.

Promise: a rejected delivery is acked only after the broker confirmed its dead letter. While the
broker confirms none (an alarm), the others are acked nevertheless: what cures a broker's full disk
is that its queues are drained.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from aiormq.abc import AbstractChannel

from worker.broker.life import Life
from worker.broker.publisher import IN_FLIGHT, in_flight
from worker.deliveries import Outcome, Verdict
from worker.errors import BrokerRefused, SessionLost
from worker.tasks import end

# Confirms take milliseconds. A broker that sends none for this long is probably in an alarm.
BLOCKED_SECONDS = 5
# How long a drain waits for confirms that are on their way, so that nothing is dead-lettered twice.
DRAIN_SECONDS = 1
RETRY_SECONDS = 1
# The bodies of the dead letters that are in flight together, unless a single one is larger.
IN_FLIGHT_BYTES = 16 * 1024 * 1024

OnBlocked = Callable[[BrokerRefused | None], None]
"""Hears why dead letters cannot be published, and None once they can be again."""
OnSettledLate = Callable[[Sequence[Outcome]], None]
"""Hears of outcomes whose dead letters were blocked when the rest of their batch was settled."""


class Settlement:
    """Settles the deliveries of one channel within `async with`."""

    def __init__(
        self,
        channel: AbstractChannel,
        dead_letter: Callable[[Outcome], Awaitable[None]],
        life: Life,
        prefetch: int,
        on_blocked: OnBlocked,
        on_settled_late: OnSettledLate,
    ) -> None:
        """Ack on the channel that delivers; `dead_letter` returns when one is confirmed.

        `prefetch` is how many deliveries may be unacked.
        """
        self._channel = channel
        self._publish_confirmed = dead_letter
        self._life = life
        self._prefetch = prefetch
        self._on_blocked = on_blocked
        self._on_settled_late = on_settled_late
        # Rejected outcomes by their tags, in the order in which they are published.
        self._unconfirmed: dict[int, Outcome] = {}
        # Tags that `settle` no longer waits for: whoever gets the confirm acks them.
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
        """Leave what is not confirmed to the broker, unacked."""
        await end(self._publishing)

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        """Dead-letter the rejected and wait for the confirms, then ack all with one frame.

        The outcomes are those of one batch, in the order of delivery. Returns those that are
        settled: all but the rejected ones whose dead letters are blocked, or are still unconfirmed
        in a drain. Raises `SessionLost` if the session ended before. What is not acked comes again,
        and the log knows it.
        """
        if rejected := [o for o in outcomes if o.verdict is Verdict.REJECTED]:
            await self._await_dead_letters(rejected)
        if not self._unconfirmed:
            # Tags rise with the order of delivery, and every earlier batch has been settled.
            await self._ack(outcomes[-1].delivery.tag, multiple=True)
            return outcomes
        self._left = set(self._unconfirmed)
        settled = [outcome for outcome in outcomes if outcome.delivery.tag not in self._left]
        for outcome in settled:
            # One by one: `multiple` would ack those that wait before them, too.
            await self._ack(outcome.delivery.tag)
        return settled

    async def _await_dead_letters(self, rejected: Sequence[Outcome]) -> None:
        """Hand them to the task that publishes, and wait while it makes progress."""
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
        """Publish what is to be dead-lettered, many at once, until the session ends."""
        most = IN_FLIGHT
        with suppress(SessionLost):
            while True:
                await self._has_work.wait()
                refusals = await self._publish_together(self._next(most))
                if refusals:
                    # A dead-letter queue that is full or gone, a missing permission. To end the
                    # session would count as a lost delivery of the neighbours.
                    self._block(refusals[0])
                    await asyncio.sleep(RETRY_SECONDS)
                    self._life.require()
                elif most == IN_FLIGHT or not self._unconfirmed:
                    self._block(None)
                # After a refusal, one is enough to see whether the broker takes them again.
                most = 1 if refusals else IN_FLIGHT

    async def _publish_together(self, outcomes: Sequence[Outcome]) -> list[BrokerRefused]:
        """Publish these; return why the broker did not take some of them."""
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
        """Return what is published together: within the bounds, but at least one."""
        outcomes: list[Outcome] = []
        size = 0
        for outcome in self._unconfirmed.values():
            size += len(outcome.delivery.body)
            if outcomes and (len(outcomes) == most or size > IN_FLIGHT_BYTES):
                break
            outcomes.append(outcome)
        return outcomes

    async def _dead_letter(self, outcome: Outcome) -> BrokerRefused | None:
        """Publish one; ack it if nobody else will. Returns why the broker did not take it."""
        tag = outcome.delivery.tag
        try:
            await self._publish_confirmed(outcome)
        except SessionLost as error:
            self._life.lose(error.message)
            raise
        except BrokerRefused as error:
            # The others come first: what is wrong may be wrong with this one alone.
            self._unconfirmed[tag] = self._unconfirmed.pop(tag)
            return error
        self._progressed_at = asyncio.get_running_loop().time()
        if tag in self._left:
            await self._ack(tag)
            self._on_settled_late([outcome])
        # Only now: while it stands there, `settle` acks nothing with `multiple`.
        del self._unconfirmed[tag]
        if not self._unconfirmed:
            self._has_work.clear()
            self._release()
        return None

    async def _ack(self, tag: int, *, multiple: bool = False) -> None:
        with self._life.depends_on_channel():
            await self._channel.basic_ack(tag, multiple=multiple)

    def _block(self, reason: BrokerRefused | None) -> None:
        """Note why dead letters are blocked, or that they are not; tell whoever hears of it."""
        was_blocked, had_full_prefetch = self._blocked_because, self._has_full_prefetch
        is_full = had_full_prefetch or len(self._unconfirmed) >= self._prefetch
        self._blocked_because = reason
        self._has_full_prefetch = reason is not None and is_full
        if reason is not None:
            self._release()
        if (reason is None) != (was_blocked is None) or self._has_full_prefetch > had_full_prefetch:
            self._on_blocked(self._holding_up_all(reason) if reason and is_full else reason)

    def _holding_up_all(self, reason: BrokerRefused) -> BrokerRefused:
        return BrokerRefused(
            f"{reason.message} Rejected messages fill the prefetch ({self._prefetch:,}), so the "
            "messages behind them wait, too.",
            reason.hint,
        )

    def _release(self) -> None:
        if not self._need_not_wait.done():
            self._need_not_wait.set_result(None)


def _silent() -> BrokerRefused:
    return BrokerRefused(
        f"The broker has not confirmed a dead letter for {BLOCKED_SECONDS} seconds; it may be in "
        "an alarm.",
        "see 'rabbitmq-diagnostics alarms'.",
    )
