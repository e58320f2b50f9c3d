import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from itertools import count
from typing import Self

import pytest
from aio_pika import Message
from aio_pika.exceptions import ChannelNotFoundEntity

from tests.members import Member, member
from tests.queues import Queues, queues_on
from tests.waiting import eventually, turns
from worker.broker import commands, resize
from worker.broker.connection import BrokerAddress
from worker.broker.partitions import Ranking, queue_of
from worker.broker.topology import Topology
from worker.errors import BrokerRefused


@pytest.fixture
async def queues(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Queues]:
    monkeypatch.setattr(resize, "LOOK_SECONDS", 0.1)
    async with queues_on(broker_url, 4) as queues:
        await queues.declare()
        yield queues


CHATS = 24


class Interrupted(Exception):
    """The command was interrupted."""


async def fill(queues: Queues) -> None:
    """Publish a message to each chat, so that each partition gets some."""
    for chat in range(CHATS):
        await queues.publish([b"%d" % chat], f"chat-{chat}")


async def put(queues: Queues, partition: int, content: bytes) -> None:
    """Publish a message to one partition."""
    async with queues.channel() as channel:
        name = queue_of(queues.name, partition)
        await channel.default_exchange.publish(Message(content), name)


class Group:
    """Workers that know the number of partitions, and the number that they are told."""

    def __init__(self, queues: Queues) -> None:
        self.queues = queues
        self.told: list[int] = []
        self.said: list[str] = []
        self.members: list[Member] = []

    @classmethod
    async def of(cls, queues: Queues, stack: AsyncExitStack, *names: str) -> Self:
        """Return workers that are attached to all partitions."""
        group = cls(queues)
        for name in names:
            await group.add(stack, name)
        return group

    async def add(self, stack: AsyncExitStack, name: str) -> None:
        """Start another worker."""
        one = await stack.enter_async_context(member(self.queues, Ranking(name)))
        self.members.append(one)
        await eventually(lambda: one.session._quarantine.is_complete)

    def heard(self, sentence: str) -> None:
        """Note the progress of a command."""
        self.said.append(sentence)

    async def hears(self, words: str) -> None:
        """Wait until the command says this."""
        await eventually(lambda: any(words in each for each in self.said))

    async def write(self, partitions: int) -> None:
        """Tell the workers, as the row in the database does."""
        self.told.append(partitions)
        self.queues.partitions = partitions
        for each in self.members:
            each.session.resize(partitions)

    async def resize(self, partitions: int) -> None:
        """Run the command as an operator would."""
        address = BrokerAddress((self.queues.url,))
        await commands.resize(address, self.queues.current, partitions, self.write, self.heard)

    @property
    def bodies(self) -> set[bytes]:
        """The messages that were settled."""
        return {delivery.body for each in self.members for delivery in each.taken}


async def exist(queues: Queues, most: int = 8) -> list[int]:
    """Return the numbers of the partitions whose queues exist."""
    found = []
    for number in range(most):
        async with queues.channel() as channel:
            with suppress(ChannelNotFoundEntity):
                await channel.declare_queue(queue_of(queues.name, number), passive=True)
                found.append(number)
    return found


class TestAResize:
    async def test_loses_nothing_that_is_published_meanwhile(self, queues: Queues) -> None:
        """Every publish is routed and confirmed, and every message is settled."""
        published: list[bytes] = []
        is_done = asyncio.Event()

        async def publish() -> None:
            async with queues.channel() as channel:
                exchange = await channel.get_exchange(queues.exchange)
                while not is_done.is_set():
                    for _ in range(20):
                        body = b"%d" % len(published)
                        # Raises if it is not routed, or not confirmed.
                        await exchange.publish(Message(body), f"chat-{len(published) % 50}")
                        published.append(body)
                    await turns(10)

        async with AsyncExitStack() as stack:
            group = await Group.of(queues, stack, "a", "b")
            publishing = asyncio.create_task(publish())
            await group.resize(6)
            assert await exist(queues) == [0, 1, 2, 3, 4, 5]
            await group.resize(3)
            is_done.set()
            await publishing
            await eventually(lambda: len(group.bodies) == len(published))
            assert not any(each.loop.done() for each in group.members)

        assert await exist(queues) == [0, 1, 2]
        assert group.told == [6, 3]
        assert group.bodies == set(published)
        assert await queues.left() == 0

    async def test_waits_for_messages_that_are_not_acked(self, queues: Queues) -> None:
        """A queue is empty and yet has messages, as long as a worker holds them."""
        async with AsyncExitStack() as stack:
            group = await Group.of(queues, stack, "a")
            group.members[0].hold()
            await put(queues, 2, b"held")
            resizing = asyncio.create_task(group.resize(2))
            await group.hears("1 queue still consumed")
            assert await exist(queues) == [0, 1, 2, 3]
            group.members[0].go_on()
            await resizing

        assert group.told == [2]
        assert group.bodies == {b"held"}
        assert await exist(queues) == [0, 1]

    async def test_brings_back_the_consumers_of_messages_that_were_lost(
        self, queues: Queues
    ) -> None:
        """A worker that dies after it was told to leave leaves messages that nobody consumes."""
        async with AsyncExitStack() as stack:
            group = await Group.of(queues, stack, "a")
            group.members[0].hold()
            await put(queues, 2, b"lost")
            resizing = asyncio.create_task(group.resize(2))
            await group.hears("1 queue still consumed")
            group.members[0].cut()
            await eventually(lambda: group.told == [2, 4])
            await group.add(stack, "b")
            await resizing

        assert group.told == [2, 4, 2]
        assert group.bodies == {b"lost"}
        assert await exist(queues) == [0, 1]

    async def test_excludes_all_other_commands_that_change_queues(self, queues: Queues) -> None:
        """The second one changes nothing, and works after the first, from the number it wrote."""
        address = BrokerAddress((queues.url,))
        async with AsyncExitStack() as stack:
            group = await Group.of(queues, stack, "a")
            group.members[0].hold()
            await put(queues, 2, b"held")
            resizing = asyncio.create_task(group.resize(2))
            await group.hears("1 queue still consumed")
            for second in (
                group.resize(4),
                commands.apply(address, queues.current),
                commands.retire(address, queues.current),
            ):
                with pytest.raises(BrokerRefused, match="Another command changes"):
                    await second
            group.members[0].go_on()
            await resizing
            await group.resize(4)

        assert group.told == [2, 4]
        assert await exist(queues) == [0, 1, 2, 3]

    async def test_keeps_a_queue_that_somebody_fills_again(
        self, queues: Queues, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What came after the last look is not deleted, and the next command drains it."""
        fill_again = partial(put, queues, 3, b"late")
        with monkeypatch.context() as patch:
            patch.setattr(resize._Resizing, "_require_dead_letters", lambda *_: fill_again())
            async with AsyncExitStack() as stack:
                group = await Group.of(queues, stack)
                with pytest.raises(BrokerRefused, match=r"003' has messages"):
                    await group.resize(2)
        assert await exist(queues) == [0, 1, 2, 3]

        async with AsyncExitStack() as stack:
            group = await Group.of(queues, stack, "a")
            await group.resize(2)

        assert group.bodies == {b"late"}
        assert await exist(queues) == [0, 1]

    async def test_refuses_queues_that_differ(self, queues: Queues) -> None:
        """Such as with the delivery limit of another WORKER_DELIVERY_LIMIT; nothing is changed."""
        group = Group(queues)

        async def other() -> Topology:
            return queues.topology(delivery_limit=10)

        with pytest.raises(BrokerRefused, match="with other arguments"):
            await commands.resize(BrokerAddress((queues.url,)), other, 6, group.write, group.heard)

        assert group.told == []
        assert await exist(queues) == [0, 1, 2, 3]

    @pytest.mark.parametrize("wanted", [6, 2])
    async def test_that_was_interrupted_is_finished_by_the_next(
        self, queues: Queues, wanted: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Wherever it stopped: here, after each of its steps in turn."""
        async with AsyncExitStack() as stack:
            group = await Group.of(queues, stack, "a")
            for steps in count():
                left = iter(range(steps))

                def stop(_: str, left: Iterator[int] = left) -> None:
                    if next(left, None) is None:
                        raise Interrupted

                monkeypatch.setattr(group, "heard", stop)
                try:
                    await group.resize(wanted)
                except Interrupted:
                    continue
                break
            await fill(queues)
            await eventually(lambda: len(group.bodies) == CHATS)

        assert steps >= 2
        assert group.told[-1] == wanted
        assert await exist(queues) == list(range(wanted))
