import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aio_pika import Message

from tests.broker.test_topology import listed
from tests.letters import EVERY, place_of, put, requeue_all
from tests.queues import Queues, queues_on
from tests.rabbitmq import HAS_SHARDING_INSIDE, SHARDING, RabbitMQNode, version
from worker.broker import commands
from worker.broker.connection import BrokerAddress
from worker.broker.dead_letter_queue import dead_letter_queue
from worker.broker.definitions import definitions
from worker.broker.partitions import queue_of
from worker.errors import BrokerRefused

PARTITIONS = 6


@pytest.fixture
async def queues(broker_url: str) -> AsyncIterator[Queues]:
    async with queues_on(broker_url, PARTITIONS) as queues:
        yield queues


async def depths(queues: Queues) -> tuple[int | None, ...]:
    """Return how many messages wait in each partition."""
    verified = await commands.verify(BrokerAddress((queues.url,)), queues.topology())
    assert verified.queue == sum(count or 0 for count in verified.partitions)
    return verified.partitions


class TestPartitions:
    async def test_each_get_the_messages_of_their_chats(self, queues: Queues) -> None:
        """All messages of one chat are in one queue, and all chats in several."""
        await queues.declare()
        for chat in range(20):
            await queues.publish([b"1", b"2", b"3"], routing_key=f"chat-{chat}")

        found = await depths(queues)

        assert len(found) == PARTITIONS
        assert sum(count or 0 for count in found) == 60
        assert all((count or 0) % 3 == 0 for count in found)
        assert sum(bool(count) for count in found) > 2

    async def test_have_queues_with_the_arguments_of_the_one_queue(
        self, queues: Queues, node: RabbitMQNode
    ) -> None:
        """They differ from it in nothing but their number."""
        await queues.declare()

        found = await listed(node, "queues", "name", "arguments")
        exchanges = await listed(node, "exchanges", "name", "type", "durable")

        one = Queues(queues.url)
        one.name = queues.name
        expected = one.topology().queues[queues.name]
        ours = {queue["name"]: {k: v for k, _, v in queue["arguments"]} for queue in found}
        names = [queue_of(queues.name, partition) for partition in range(PARTITIONS)]
        assert [ours.get(name) for name in names] == [expected] * PARTITIONS
        assert queues.name not in ours
        (spreading,) = [each for each in exchanges if each["name"] == queues.name]
        assert (spreading["type"], spreading["durable"]) == ("x-modulus-hash", True)

    async def test_keep_their_chats_when_everything_is_applied_again(self, queues: Queues) -> None:
        """Bindings that exist, and those that are made again, change no route."""
        await queues.declare()
        chats = [f"chat-{number}" for number in range(8)]
        for chat in chats:
            await queues.publish([b"x"], routing_key=chat)
        before = await depths(queues)
        async with queues.channel() as channel:
            queue = await channel.get_queue(queue_of(queues.name, 0))
            await queue.unbind(queues.name, "")

        await queues.declare()
        for chat in chats:
            await queues.publish([b"x"], routing_key=chat)

        assert await depths(queues) == tuple((count or 0) * 2 for count in before)

    async def test_that_are_missing_are_named(self, queues: Queues) -> None:
        """One of them is enough for a verification to fail, and applying creates it."""
        address = BrokerAddress((queues.url,))
        await queues.declare()
        missing = queue_of(queues.name, 4)
        async with queues.channel() as channel:
            await channel.queue_delete(missing)

        with pytest.raises(BrokerRefused, match=re.escape(missing)):
            await commands.verify(address, queues.topology())
        created = await commands.apply(address, queues.current)

        assert created == [f"queue {missing!r}"]
        assert await depths(queues) == (0,) * PARTITIONS

    async def test_that_workers_do_not_know_are_named_if_messages_wait(
        self, queues: Queues
    ) -> None:
        """They were made with another number than the database's, and nobody consumes from them."""
        address = BrokerAddress((queues.url,))
        await queues.declare()
        assert not (await commands.verify(address, queues.topology())).has_surplus
        known = replace(queues.topology(), partitions=PARTITIONS - 1)
        assert (await commands.verify(address, known)).has_surplus
        name = queue_of(queues.name, PARTITIONS - 1)
        async with queues.channel() as channel:
            await channel.default_exchange.publish(Message(b"stranded"), name)

        with pytest.raises(BrokerRefused, match=re.escape(f"{name!r} exists and has 1 message")):
            await commands.verify(address, known)

    async def test_that_differ_are_named(self, queues: Queues) -> None:
        """Another delivery limit of one of them is an error."""
        await queues.declare()

        with pytest.raises(BrokerRefused, match="x-delivery-limit"):
            await commands.verify(BrokerAddress((queues.url,)), queues.topology(7))

    async def test_can_be_imported_by_an_operator(
        self, queues: Queues, node: RabbitMQNode, tmp_path: Path
    ) -> None:
        """RabbitMQ takes the exported definitions, and then nothing is missing and all is bound."""
        file = tmp_path / "definitions.json"
        file.write_text(json.dumps(definitions(queues.topology(), "/")))

        await node.ctl("import_definitions", str(file))
        await queues.publish([b"x"])

        assert sorted(Counter(await depths(queues)).items()) == [(0, PARTITIONS - 1), (1, 1)]
        for queue in (queues.name, queues.dead_letters):
            await node.ctl("clear_policy", queue)

    async def test_get_their_dead_letters_back(self, queues: Queues) -> None:
        """A requeued message goes to the queue of its chat."""
        await queues.declare()
        await queues.publish([b"x"] * 3, routing_key="chat-7")
        before = await depths(queues)
        await put(queues, [b"x"] * 3, headers={"x-routing-key": "chat-7"})

        await requeue_all(queues)

        assert await depths(queues) == tuple((count or 0) * 2 for count in before)
        async with dead_letter_queue(*place_of(queues)) as letters:
            assert [letter async for letter in letters.letters(EVERY)] == []


@pytest.mark.skipif(version() >= HAS_SHARDING_INSIDE, reason="this broker needs no plugin")
class TestTheMissingPlugin:
    async def test_is_named_with_the_command_that_enables_it(self) -> None:
        """Before the exchange exists, and when the plugin is switched off later."""
        async with RabbitMQNode(has_sharding=False) as node, queues_on(node.url, 2) as queues:
            address = BrokerAddress((node.url,))
            with pytest.raises(BrokerRefused) as never_enabled:
                await commands.apply(address, queues.current)
            await node.plugins("enable", SHARDING)
            await commands.apply(address, queues.current)
            await node.plugins("disable", SHARDING)
            with pytest.raises(BrokerRefused) as switched_off:
                await commands.verify(address, queues.topology())

        for refused in (never_enabled.value, switched_off.value):
            assert "x-modulus-hash" in refused.message
            assert "rabbitmq-plugins enable rabbitmq_sharding" in refused.hint
