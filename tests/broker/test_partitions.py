from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import pytest
from aio_pika import Message

from tests.members import Killed, Member, member, owners
from tests.queues import Queues, queues_on
from tests.rabbitmq import RabbitMQNode, version
from tests.waiting import eventually
from worker.broker import intake
from worker.broker.partitions import Ranking, own_partitions, queue_of
from worker.broker.quarantine import Quarantine
from worker.deliveries import Delivery

PARTITIONS = 8
CHATS = 24
HAS_PRIORITIES = version() >= (4,)


@pytest.fixture
async def queues(broker_url: str) -> AsyncIterator[Queues]:
    async with queues_on(broker_url, PARTITIONS) as queues:
        await queues.declare()
        yield queues


async def publish(queues: Queues, per_chat: int = 3) -> None:
    """Publish messages of many chats, so that each partition gets some."""
    for chat in range(CHATS):
        await queues.publish([b"%d" % number for number in range(per_chat)], f"chat-{chat}")


async def attached(*members: Member) -> None:
    """Wait until these are attached to all partitions."""
    await eventually(lambda: all(each.session._quarantine.is_complete for each in members))


class TestAWorker:
    async def test_that_is_alone_gets_the_messages_of_all_partitions(self, queues: Queues) -> None:
        """Each once, with the number of the partition that it came from."""
        await publish(queues)

        async with member(queues, Ranking("a")) as only:
            await eventually(lambda: len(only.taken) == 3 * CHATS)

        found = {(each.partition, each.routing_key) for each in only.taken}
        assert len({partition for partition, _ in found}) == PARTITIONS
        assert len(found) == CHATS
        assert len({(each.routing_key, each.body) for each in only.taken}) == 3 * CHATS
        assert await queues.left() == 0

    async def test_says_what_it_is_doing(self, queues: Queues) -> None:
        """How many it has taken and not settled, and how old the oldest is."""
        at = datetime(2026, 11, 27, 12, tzinfo=UTC)
        async with member(queues, Ranking("a")) as only:
            await attached(only)
            only.hold()
            await queues.publish([b"1"], timestamp=at)
            await queues.publish([b"2", b"3"])
            consumer = only.session.consumer
            before = consumer.activities()
            await eventually(lambda: sum(each.unsettled for each in consumer.activities()) == 1)
            (busy,) = [each for each in consumer.activities() if each.unsettled]
            only.go_on()
            await eventually(lambda: len(only.taken) == 3)
            after = consumer.activities()

        assert len(before) == PARTITIONS
        assert busy.oldest_at == at
        assert busy.delivered_at is not None
        assert [each.unsettled for each in after] == [0] * PARTITIONS
        assert [each.partition for each in after if each.delivered_at] == [busy.partition]

    async def test_whose_partition_is_deleted_against_its_will_opens_a_new_session(
        self, queues: Queues, node: RabbitMQNode
    ) -> None:
        """That it loses messages must not go unnoticed."""
        async with member(queues, Ranking("a")) as only:
            await attached(only)
            await node.ctl("delete_queue", queue_of(queues.name, 3))

            await eventually(only.loop.done)

    async def test_that_knows_fewer_partitions_leaves_the_others(self, queues: Queues) -> None:
        """Their queues may be deleted; it goes on with its own, and comes back when told."""
        async with member(queues, Ranking("a")) as only:
            await attached(only)
            only.session.resize(5)
            async with queues.channel() as channel:

                async def is_left() -> bool:
                    name = queue_of(queues.name, 7)
                    queue = await channel.declare_queue(name, passive=True)
                    return not queue.declaration_result.consumer_count

                await eventually(is_left)
                await channel.queue_delete(queue_of(queues.name, 7))
            await queues.declare()
            only.session.resize(PARTITIONS)
            await publish(queues)
            await eventually(lambda: len(only.taken) == 3 * CHATS)

    async def test_goes_on_when_a_queue_is_deleted_that_it_should_leave(
        self, queues: Queues, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The broker cancels its consumers there before it does so itself."""

        async def late(_: Quarantine) -> None:
            pass

        async with member(queues, Ranking("a")) as only:
            await attached(only)
            monkeypatch.setattr(Quarantine, "_leave", late)
            only.session.resize(7)
            async with queues.channel() as channel:
                await channel.queue_delete(queue_of(queues.name, 7))
            await eventually(lambda: 7 not in only.session._quarantine._windows)
            await publish(queues)
            await eventually(lambda: len(only.taken) == 3 * CHATS)
            known = only.session.consumer._intake.partitions
            await eventually(lambda: 7 not in known.values())

    async def test_remembers_no_consumer_that_has_ended(self, queues: Queues) -> None:
        """Silent partitions get new consumers again and again, for as long as a worker runs."""
        async with member(queues, Ranking("a")) as only:
            await attached(only)
            await publish(queues)
            await eventually(lambda: len(only.taken) == 3 * CHATS)
            known = only.session.consumer._intake.partitions
            for prefetch in (10, 20):
                await only.session._quarantine.resize(prefetch)

            # The narrow windows have ended, and the wide ones were replaced.
            assert sorted(known.values()) == list(range(PARTITIONS))

    async def test_shares_its_room_among_the_partitions(
        self, queues: Queues, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise what it has returned comes again before there is room, and counts as lost."""
        monkeypatch.setattr(intake, "MOST_HELD_BYTES", 32_000)
        windows: list[tuple[int, int]] = []
        resize = Quarantine.resize

        async def noted(quarantine: Quarantine, prefetch: int) -> None:
            windows.append((prefetch, len(only.taken)))
            await resize(quarantine, prefetch)

        monkeypatch.setattr(Quarantine, "resize", noted)
        async with member(queues, Ranking("a"), prefetch=20) as only:
            await attached(only)
            for chat in range(CHATS):
                await queues.publish([b"x" * 1_000], f"chat-{chat}")
            # All windows are wide now.
            await eventually(lambda: len(only.taken) == CHATS)
            only.hold()
            for chat in range(CHATS):
                await queues.publish([b"x" * 1_000] * 19, f"chat-{chat}")
            await eventually(lambda: only.session.consumer._intake._not_kept)
            only.go_on()
            await eventually(lambda: len(only.taken) == 20 * CHATS)

        (narrow, at), (wide, later), *_ = windows
        assert narrow * PARTITIONS <= 32
        assert wide == 20
        assert later - at > wide * PARTITIONS


class Group:
    """Workers that come and go."""

    def __init__(self, queues: Queues, node: RabbitMQNode, stack: AsyncExitStack) -> None:
        self.queues = queues
        self.node = node
        self.members: dict[str, Member] = {}
        self._stack = stack
        self._ends: dict[str, AsyncExitStack] = {}

    async def join(self, name: str) -> None:
        """Start a worker."""
        self._ends[name] = await self._stack.enter_async_context(AsyncExitStack())
        one = member(self.queues, Ranking(name))
        self.members[name] = await self._ends[name].enter_async_context(one)

    async def drain(self, name: str) -> None:
        """Stop a worker as SIGTERM does."""
        await self.members.pop(name).drain()
        await self._ends[name].aclose()

    async def kill(self, name: str) -> None:
        """End a worker as SIGKILL does."""
        self.members.pop(name).cut()
        await self._ends[name].aclose()

    async def freeze(self, name: str) -> None:
        """Do what the broker sees of a frozen worker, half a minute later."""
        self.members[name].hold()
        await publish(self.queues)
        await self.kill(name)

    async def owners(self) -> list[str]:
        """Return the worker of each partition once each has one; check that it is the right one."""
        ones = list(self.members.values())
        await attached(*ones)

        async def look() -> list[str] | None:
            found = await owners(self.node, self.queues, ones)
            return found if not HAS_PRIORITIES or found == highest(ones) else None

        return await eventually(look)


def highest(members: Sequence[Member]) -> list[str]:
    """Return the worker with the highest rank for each partition."""
    rankings = [each.ranking for each in members]
    return [
        max(rankings, key=lambda ranking: ranking.rank(partition, PARTITIONS)).worker
        for partition in range(PARTITIONS)
    ]


class TestWorkersThatComeAndGo:
    @pytest.mark.parametrize("end", ["drain", "kill", "freeze"])
    async def test_leave_each_partition_to_one_of_them(
        self, queues: Queues, node: RabbitMQNode, end: str
    ) -> None:
        """Only partitions of the one that came or went have moved, and all are served."""
        async with AsyncExitStack() as stack:
            group = Group(queues, node, stack)
            await group.join("w-0")
            await group.join("w-1")
            two = await group.owners()
            await group.join("w-2")
            three = await group.owners()
            gone = three[0]
            await getattr(group, end)(gone)
            left = await group.owners()
            await publish(queues)
            # What a frozen worker had taken comes again, marked as such.
            await eventually(
                lambda: sum(len(each.taken) for each in group.members.values()) >= 3 * CHATS
            )

        came = {new for old, new in zip(two, three, strict=True) if old != new}
        went = {old for old, new in zip(three, left, strict=True) if old != new}
        assert came <= {"w-2"}
        assert went == {gone}


class TestWorkersWithOrdinals:
    async def test_that_start_together_share_the_partitions(
        self, queues: Queues, node: RabbitMQNode
    ) -> None:
        """Each has its own, even where the broker ignores priorities."""
        async with AsyncExitStack() as stack:
            members = [
                await stack.enter_async_context(member(queues, Ranking(f"w-{number}", number)))
                for number in range(3)
            ]
            await attached(*members)
            found = await owners(node, queues, members)

        assert sorted(Counter(found).values()) == [2, 3, 3]
        assert {place for place, name in enumerate(found) if name == "w-2"} == own_partitions(
            2, PARTITIONS
        )


POISON = b"poison"
LIMIT = 6


def die_of_poison(batch: Sequence[Delivery]) -> None:
    if any(delivery.body == POISON for delivery in batch):
        raise Killed


class TestAMessageThatKills:
    @pytest.mark.parametrize("workers", [1, 3])
    async def test_ends_alone_as_a_dead_letter(self, node: RabbitMQNode, workers: int) -> None:
        """Every other message is settled, after two lost deliveries, or a third beside it."""
        async with queues_on(node.url, PARTITIONS) as queues, AsyncExitStack() as stack:
            await queues.declare(LIMIT)
            # Every window is full when it kills, twice; then it is decided first among equals.
            await publish(queues, 3)
            async with queues.channel() as channel:
                last = queue_of(queues.name, PARTITIONS - 1)
                await channel.default_exchange.publish(Message(POISON), last)
            await publish(queues, 37)

            async def start(name: str) -> Member:
                one = member(queues, Ranking(name), decide=die_of_poison, delivery_limit=LIMIT)
                return await stack.enter_async_context(one)

            members = [await start(f"w-{number}") for number in range(workers)]
            everyone = [*members]
            total = 40 * CHATS

            async def all_is_settled() -> bool:
                for place, each in enumerate(members):
                    if each.has_died:
                        members[place] = await start(each.ranking.worker)
                        everyone.append(members[place])
                deaths = sum(each.has_died for each in everyone)
                return deaths > LIMIT and sum(len(each.taken) for each in everyone) >= total

            await eventually(all_is_settled, every=0.05)
            letter = await queues.next_dead_letter()

            taken = [delivery for each in everyone for delivery in each.taken]
            assert letter.body == POISON
            assert letter.headers["x-first-death-reason"] == "delivery_limit"
            assert sum(each.has_died for each in everyone) == LIMIT + 1
            assert max(delivery.losses for delivery in taken) <= 3
            assert await queues.take_dead_letters() == []
