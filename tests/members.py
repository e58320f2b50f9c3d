"""Workers of partitioned queues, without a database: real sessions in this process.

A test sees from outside which of them the broker has made the active consumer of each partition.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.waiting import LISTING_SECONDS, eventually
from worker.broker.claim import Claimant
from worker.broker.connection import BrokerAddress
from worker.broker.consumer import Reception
from worker.broker.partitions import Ranking, queue_of
from worker.broker.session import Session, session
from worker.deliveries import Delivery, Outcome, Reason, Rejected, Verdict
from worker.errors import SessionLost
from worker.messages import Arrival
from worker.tasks import end

NOTHING = Rejected(Reason.NOT_JSON, "")
DATABASE = Claimant("unused", "the-members", is_new=True)


def undecoded(delivery: Delivery) -> Arrival:
    return Arrival(delivery, NOTHING)


class Killed(Exception):
    """A message has killed the process that had to decide it."""


Decide = Callable[[Sequence[Delivery]], None]
"""Called with each batch before it is settled."""


class Member:
    """One worker: takes batches, and settles them as applied."""

    def __init__(self, opened: Session, ranking: Ranking, decide: Decide) -> None:
        self.session = opened
        self.ranking = ranking
        self.taken: list[Delivery] = []
        """Every delivery that it has settled."""
        self.has_died = False
        self._decide = decide
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self.loop = asyncio.create_task(self._consume())

    def hold(self) -> None:
        """Settle nothing any more, as if the process were frozen or the database away."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """Settle again."""
        self._goes_on.set()

    def cut(self) -> None:
        """End the connection as the end of a killed process does."""
        self.session._consuming.kwargs["transport_factory"].abort()

    async def drain(self) -> None:
        """Take no more, and settle what was taken."""
        self.session.consumer.drain()
        await self.loop

    async def _consume(self) -> None:
        try:
            async for batch in self.session.consumer:
                await self._goes_on.wait()
                deliveries = [arrival.delivery for arrival in batch]
                try:
                    self._decide(deliveries)
                except Killed:
                    self.has_died = True
                    self.cut()
                    return
                outcomes = [Outcome(delivery, Verdict.APPLIED) for delivery in deliveries]
                await self.session.consumer.settle(outcomes)
                self.taken += deliveries
        except SessionLost:
            pass  # The test ended it.


def survive(_: Sequence[Delivery]) -> None:
    """Decide a batch without harm."""


@asynccontextmanager
async def member(
    queues: Queues,
    ranking: Ranking,
    *,
    decide: Decide = survive,
    prefetch: int = 100,
    delivery_limit: int = 20,
) -> AsyncIterator[Member]:
    """Hold a worker that consumes from all partitions."""
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(
            session(
                BrokerAddress((queues.url,)),
                queues.topology(delivery_limit),
                DATABASE,
                Reception(undecoded, prefetch, 50, ranking),
                on_blocked=lambda _: None,
                on_settled_late=lambda _: None,
            )
        )
        await opened.consume()
        one = Member(opened, ranking, decide)
        try:
            yield one
        finally:
            await end(one.loop)


async def active_ranks(node: RabbitMQNode, queues: Queues) -> dict[int, list[int]]:
    """Return the ranks of the active consumers of each partition."""
    assert queues.partitions is not None
    listed = json.loads(
        await node.ctl("list_consumers", "--formatter", "json", "queue_name", "active", "arguments")
    )
    found: dict[int, list[int]] = {partition: [] for partition in range(queues.partitions)}
    names = {queue_of(queues.name, partition): partition for partition in found}
    for each in listed:
        if each["queue_name"] in names and each["active"]:
            priority = {name: value for name, _, value in each["arguments"]}["x-priority"]
            found[names[each["queue_name"]]].append(priority // 2)
    return found


async def owners(node: RabbitMQNode, queues: Queues, members: Sequence[Member]) -> list[str]:
    """Wait until each partition has one active consumer of these workers; return their names."""
    assert queues.partitions is not None
    count = queues.partitions
    by_rank = [
        {each.ranking.rank(partition, count): each.ranking.worker for each in members}
        for partition in range(count)
    ]

    async def look() -> list[str] | None:
        ranks = await active_ranks(node, queues)
        if any(len(set(found)) != 1 for found in ranks.values()):
            return None
        names = [by_rank[partition].get(found[0]) for partition, found in ranks.items()]
        return [name for name in names if name] if all(names) else None

    return await eventually(look, every=LISTING_SECONDS)
