"""The quarantine: one delivery at a time, until no message is suspected of killing its consumers.

A message that kills the process, or the client library before it calls our code, does so on every
redelivery. Each time, the broker counts a lost delivery for every message that was unacked on the
channel with it. After two it is a suspect, and so are those that were with it twice. From then on
no suspect may be unacked together with another one.

So each queue begins with a window of one message. The broker delivers first what was lost, so a
message that is not a suspect says that no suspect is behind it: once it has been decided, the
window widens. Partitions are several such queues on one channel:

- A session attaches to one queue after the other, and waits as long as a suspect is unsettled. No
  window widens before all are attached, or while a suspect waits.
- A suspect is decided alone. Those that nevertheless wait together, because several partitions
  moved here at once, are decided in the order of their losses, and among equals in an order that
  turns with each loss: whatever lost a delivery behind the culprit stands before it the next time.
- A partition that has been silent gets its narrow window back: it may have moved to a worker of
  higher rank, and may come back with that worker's suspects.

Promise: the broker's delivery limit catches the culprit alone. No other message loses more than two
deliveries to it, or a third if both wait here as suspects at once; the lowest limit that can be set
allows three. That happens when several partitions move to one worker at the same moment, and when
the broker puts a lost message behind others that were lost less often, which it does if the worker
died before it had all of them again.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from itertools import chain
from types import TracebackType
from typing import Self

from aiormq.abc import AbstractChannel

from worker.broker.activity import Activity, activities
from worker.broker.intake import Intake
from worker.broker.life import Life
from worker.broker.partitions import Plan, queue_of
from worker.broker.topology import Topology
from worker.broker.windows import Consuming, Windows
from worker.deliveries import Delivery
from worker.tasks import end

# How often silent partitions are looked for, and how long they have been silent then. If a worker
# of higher rank takes one and dies within this time, it comes back to the wide window.
SILENT_SECONDS = 5.0
# How often the task looks whether it is time to attach to another partition.
DUE_SECONDS = 0.2

Reading = Callable[[], AbstractContextManager[None]]
"""Makes what raises the right error if the broker does not let the user read."""


class Quarantine:
    """The windows of one session on all its queues, within `async with`."""

    def __init__(
        self,
        channel: AbstractChannel,
        life: Life,
        intake: Intake,
        topology: Topology,
        plan: Plan,
        reading: Reading,
    ) -> None:
        """Prepare to consume from the queue, or from its partitions; sends nothing yet.

        `reading` is entered for each request to consume.
        """
        self._reading = reading
        self._life = life
        self._intake = intake
        self._queue = topology.queue
        self._plan = plan
        self._partitions = topology.partitions
        self._steps = plan.steps(topology.partitions)
        self._consuming = Consuming(channel, intake.partitions)
        self._windows: dict[int, Windows] = {}
        self._delivered_at: dict[int, float] = {}
        # Where the message that was taken last was a suspect, so that another may follow it.
        self._suspicious: set[int] = set()
        self._prefetch = 0
        self._began_at = 0.0
        self._tending: asyncio.Task[None] | None = None
        # Set when there may be something to do for the task.
        self._wake = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        """Do nothing yet; `begin` starts the task that attaches to the partitions."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the task; the consumers end with the channel."""
        if self._tending is not None:
            await end(self._tending)

    @property
    def is_complete(self) -> bool:
        """Whether the session is attached to each queue that it should consume from."""
        return all(step.partition in self._windows for step in self._steps)

    @property
    def attached(self) -> int:
        """On how many queues the session has its windows."""
        return len(self._windows)

    async def has_rival(self) -> bool:
        """Return whether another consumer is active on the one queue; call before `begin`.

        For a queue with a single active consumer, the broker counts that one only, and none of the
        consumers that wait.
        """
        return await self._consuming.has_consumer(self._queue)

    async def begin(self, prefetch: int) -> None:
        """Let the broker deliver one message at a time; `prefetch` is for each wide window.

        Returns when the session is attached to its first queue. A task attaches to the others.
        """
        self._prefetch = prefetch
        self._began_at = time.monotonic()
        first = self._steps[0]
        if first.after_seconds == 0:
            await self._attach(first.partition, first.rank)
        if self._partitions is not None:
            self._tending = asyncio.create_task(self._tend())
            self._tending.add_done_callback(self._life.end_with)

    def assign(self, partitions: int) -> None:
        """Attach to the queues of this many partitions from now on, and leave all others."""
        if partitions != self._partitions:
            self._partitions = partitions
            self._steps = self._plan.steps(partitions)
            self._wake_up()

    def took(self, partitions: Iterable[int], *, is_suspect: bool) -> None:
        """Note from which partitions a batch was taken, and whether it is a suspect alone."""
        self._delivered_at.update(dict.fromkeys(partitions, time.monotonic()))
        if is_suspect:
            self._suspicious.update(partitions)
        else:
            self._suspicious.difference_update(partitions)

    def activities(self, unsettled: Iterable[Delivery]) -> list[Activity]:
        """Return what the session does on each partition; some may be decided but unsettled."""
        now = datetime.now(UTC)
        ages = ((each, time.monotonic() - at) for each, at in self._delivered_at.items())
        return activities(
            [step.partition for step in self._steps],
            chain(((delivery, None) for delivery in unsettled), self._intake.undecided()),
            {partition: now - timedelta(seconds=age) for partition, age in ages},
        )

    async def decided(self, partitions: Iterable[int], *, with_suspects: bool = False) -> None:
        """Widen the windows on these partitions, unless a suspect waits that should be alone.

        Call it while the messages that have been decided are still unacked.
        """
        if with_suspects or (self.is_complete and not self._intake.has_suspects):
            narrow = [
                windows
                for partition in partitions
                if (windows := self._windows.get(partition)) and windows.is_narrow
            ]
            if narrow and not self._life.drains:
                await self._ask(_widen(narrow))

    def settled(self) -> None:
        """Go on attaching if no suspect waits any more."""
        if not self._intake.has_suspects:
            self._wake_up()

    async def resize(self, prefetch: int) -> None:
        """Replace each wide window by one of this size; unacked deliveries stay unacked."""
        self._prefetch = prefetch
        await self._ask(_resize(list(self._windows.values()), prefetch))

    def forgets(self, tag: str) -> bool:
        """Return whether the broker may cancel this consumer: its partition is no longer ours."""
        partition = self._intake.partitions.get(tag.encode(), 0)
        if self._partitions is None or partition < self._partitions:
            return False
        self._windows.pop(partition, None)
        self._intake.partitions.pop(tag.encode(), None)
        return True

    async def _tend(self) -> None:
        """Attach, leave and narrow for as long as the session takes messages."""
        while not self._life.drains:
            await self._leave()
            await self._attach_to_due()
            await self._narrow_silent()
            await self._wait(SILENT_SECONDS if self.is_complete else DUE_SECONDS)

    async def _attach_to_due(self) -> None:
        """Attach to what is missing, one after the other, as long as no suspect waits."""
        waited_seconds = time.monotonic() - self._began_at
        for step in self._steps:
            if step.partition in self._windows or step.after_seconds > waited_seconds:
                continue
            await self._until_no_suspect()
            if self._life.drains or step not in self._steps:
                return
            await self._attach(step.partition, step.rank)

    async def _until_no_suspect(self) -> None:
        """Wait until each queue has delivered a message that is none, or nothing more."""
        while (self._intake.has_suspects or self._suspicious) and not self._life.drains:
            await self._wait(DUE_SECONDS)
            before = time.monotonic() - SILENT_SECONDS
            for partition in list(self._suspicious):
                with self._life.depends_on_channel():
                    is_empty = await self._consuming.is_empty(self._queue_of(partition))
                # After some time without a delivery, another worker is active there.
                if is_empty or self._delivered_at[partition] < before:
                    self._suspicious.discard(partition)

    def _queue_of(self, partition: int) -> str:
        return self._queue if self._partitions is None else queue_of(self._queue, partition)

    async def _attach(self, partition: int, rank: int) -> None:
        windows = Windows(self._consuming, self._queue_of(partition), partition, rank)
        with self._life.depends_on_channel(), self._reading():
            await windows.open(self._prefetch)
        self._windows[partition] = windows

    async def _leave(self) -> None:
        """Leave the queues that are no partitions any more."""
        wanted = {step.partition for step in self._steps}
        for partition in self._windows.keys() - wanted:
            with self._life.depends_on_channel():
                await self._windows.pop(partition).close()

    async def _narrow_silent(self) -> None:
        """Narrow the windows of partitions that may have moved to another worker."""
        if not self._plan.has_priorities:
            return  # A partition leaves this worker only with its session.
        kept = {delivery.partition for delivery, _ in self._intake.undecided()}
        before = time.monotonic() - SILENT_SECONDS
        for partition, windows in list(self._windows.items()):
            if (
                not windows.is_narrow
                and partition not in kept
                and self._delivered_at.get(partition, before) <= before
            ):
                with self._life.depends_on_channel():
                    await windows.narrow()

    async def _wait(self, seconds: float | None) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        await self._life.wait(self._wake, seconds)

    def _wake_up(self) -> None:
        if not self._wake.done():
            self._wake.set_result(None)

    async def _ask(self, request: Coroutine[None, None, None]) -> None:
        asking = asyncio.create_task(self._requested(request))
        asking.add_done_callback(self._life.end_with)
        # A drain ends the wait, because a silent broker never answers. The request itself is not
        # cancelled: that would close the channel, which still has a delivery to ack.
        await self._life.wait(asking)

    async def _requested(self, request: Coroutine[None, None, None]) -> None:
        with self._life.depends_on_channel():
            await request


async def _widen(narrow: Iterable[Windows]) -> None:
    for windows in narrow:
        await windows.widen()


async def _resize(windows: Iterable[Windows], prefetch: int) -> None:
    for each in windows:
        await each.resize(prefetch)
