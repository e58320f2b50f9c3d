"""Outcomes become settlement here: dead letters, then acks.

Promise: a rejected delivery is acked only after the broker confirmed its dead letter. While it
confirms none (an alarm), the others are acked nevertheless: what cures a full disk of the broker is
that its queues are drained.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from aiormq.abc import AbstractChannel

from worker.broker.life import Life
from worker.deliveries import Outcome, Verdict
from worker.errors import BrokerRefused, SessionLost
from worker.tasks import end

# Confirms take milliseconds; one that takes this long is held up by an alarm of the broker.
BLOCKED_SECONDS = 5
# How long a drain waits for confirms that are on their way, so that nothing is dead-lettered twice.
DRAIN_SECONDS = 1
RETRY_SECONDS = 1

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
        on_blocked: OnBlocked,
        on_settled_late: OnSettledLate,
    ) -> None:
        """Ack on the channel that delivers; `dead_letter` returns when one is confirmed."""
        self._channel = channel
        self._publish_confirmed = dead_letter
        self._life = life
        self._on_blocked = on_blocked
        self._on_settled_late = on_settled_late
        self._is_blocked = False
        self._unconfirmed: deque[Outcome] = deque()
        # Tags that `settle` no longer waits for: whoever gets the confirm acks them.
        self._left: set[int] = set()
        self._has_work = asyncio.Event()
        self._cleared: asyncio.Future[None] = asyncio.get_running_loop().create_future()

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

        The outcomes are those of one batch, in the order of delivery. Gives those that are settled:
        all of them, but for rejected ones whose dead letters are blocked or still unconfirmed in a
        drain. Raises `SessionLost` if the session ended before. What is not acked comes again, and
        the log knows it.
        """
        if rejected := [o for o in outcomes if o.verdict is Verdict.REJECTED]:
            await self._await_dead_letters(rejected)
        if not self._unconfirmed:
            # Tags rise with the order of delivery, and every earlier batch has been settled.
            await self._ack(outcomes[-1].delivery.tag, multiple=True)
            return outcomes
        self._left = {outcome.delivery.tag for outcome in self._unconfirmed}
        settled = [outcome for outcome in outcomes if outcome.delivery.tag not in self._left]
        for outcome in settled:
            # One by one: `multiple` would ack those that wait before them, too.
            await self._ack(outcome.delivery.tag)
        return settled

    async def _await_dead_letters(self, rejected: Sequence[Outcome]) -> None:
        """Hand them to the task that publishes, and wait for a while until it is done."""
        self._unconfirmed.extend(rejected)
        self._has_work.set()
        if self._is_blocked:
            return
        self._cleared = asyncio.get_running_loop().create_future()
        if not self._life.drains:
            await self._life.wait(self._cleared, BLOCKED_SECONDS)
        if self._life.drains:
            await asyncio.wait({self._cleared}, timeout=DRAIN_SECONDS)
        elif not self._cleared.done():
            self._block(
                BrokerRefused(
                    "The broker does not confirm a dead letter; it may be in an alarm.",
                    "see 'rabbitmq-diagnostics alarms'.",
                )
            )

    async def _publish(self) -> None:
        """Publish one dead letter after the other, until the session ends.

        Never two at once: aiormq tells what the broker returns apart by the message id alone, and
        two copies of one bad message share theirs.
        """
        with suppress(SessionLost):
            while True:
                await self._has_work.wait()
                outcome = self._unconfirmed[0]
                await self._publish_until_confirmed(outcome)
                if outcome.delivery.tag in self._left:
                    await self._ack(outcome.delivery.tag)
                    self._on_settled_late([outcome])
                # Only now: while it stands there, `settle` acks nothing with `multiple`.
                self._unconfirmed.popleft()
                if not self._unconfirmed:
                    self._has_work.clear()
                    if not self._cleared.done():
                        self._cleared.set_result(None)
                    self._block(None)

    async def _publish_until_confirmed(self, outcome: Outcome) -> None:
        while True:
            try:
                return await self._publish_confirmed(outcome)
            except SessionLost as error:
                self._life.lose(error.message)
                raise
            except BrokerRefused as error:
                # A dead-letter queue that is full or gone, a missing permission: the delivery stays
                # unacked. To end the session would count as a lost delivery of its neighbours.
                self._block(error)
                await asyncio.sleep(RETRY_SECONDS)
                self._life.require()

    async def _ack(self, tag: int, *, multiple: bool = False) -> None:
        with self._life.depends_on_channel():
            await self._channel.basic_ack(tag, multiple=multiple)

    def _block(self, reason: BrokerRefused | None) -> None:
        if (reason is not None) != self._is_blocked:
            self._is_blocked = reason is not None
            self._on_blocked(reason)
