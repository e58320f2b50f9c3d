import re
import signal
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.builders import body, planned, started
from tests.database import log, rows
from tests.letters import headers, place_of, put, take_back
from tests.oracle import expected_rows
from tests.processes import StartWorker
from tests.proxy import BASIC_ACK, Proxy
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.raw_amqp import raw_publisher
from tests.waiting import eventually
from worker.broker.dead_letter_queue import Selection, dead_letter_queue
from worker.broker.pages import FIRST_PAGE
from worker.errors import BrokerRefused, SessionLost

MANY = 2_000
REQUEUE_ALL = ("dead-letters", "requeue", "--all", "--yes")
SENT_AT = datetime(2026, 4, 27, 10, 39, tzinfo=UTC)
EVERY = Selection()


async def requeue_all(queues: Queues, selection: Selection = EVERY) -> list[list[str]]:
    """Requeue the selected ones; return what was left out of each."""
    left_out: list[list[str]] = []
    async with dead_letter_queue(*place_of(queues)) as queue:
        async for page in queue.pages(selection):
            await queue.requeue(page, lambda _, names: left_out.append(names))
    return left_out


def unheard(*_: object) -> None:
    """Hear of a letter that is done, and do nothing."""


def long_text(name: bytes, value: bytes) -> bytes:
    """Give one entry of a table of headers, in the bytes of the wire."""
    return bytes([len(name)]) + name + b"S" + struct.pack(">I", len(value)) + value


class TestARequeue:
    async def test_reaches_the_queue_of_this_worker_alone(self, queues: Queues) -> None:
        """Whatever else is bound to the exchange, or named by a header CC, gets no copy."""
        await queues.declare()
        async with queues.channel() as channel:
            other = await channel.declare_queue(exclusive=True)
            await other.bind(queues.exchange, "#")
            await put(queues, [planned("e-1")], headers=headers(CC=[other.name]))

            await requeue_all(queues)

            assert await other.get(fail=False) is None
        assert len(await take_back(queues)) == 1
        assert await queues.take_dead_letters() == []

    async def test_keeps_what_the_publisher_said(self, queues: Queues) -> None:
        """Body and properties are the original ones, but for the expiration."""
        await queues.declare()
        sent = {
            "message_id": "a-1", "content_type": "text/json", "correlation_id": "c-1",
            "app_id": "chat", "type": "fact", "timestamp": SENT_AT,
        }  # fmt: skip
        await put(queues, [b"raw"], headers=headers(trace="abc"), expiration=3600, **sent)

        await requeue_all(queues)

        (message,) = await take_back(queues)
        assert message.body == b"raw"
        assert {name: getattr(message, name) for name in sent} == sent
        assert message.expiration is None

    async def test_strips_what_the_worker_and_the_broker_said(self, queues: Queues) -> None:
        """What is left are the publisher's headers, the count and the routing key."""
        await queues.declare()
        broker: dict[str, Any] = {
            "x_death": [{"reason": "rejected"}], "x_first_death_reason": "rejected",
            "x_last_death_queue": "q", "x_delivery_count": 7, "x_acquired_count": 7,
        }  # fmt: skip
        await put(queues, [b"raw"], headers=headers(trace="abc", **broker))

        await requeue_all(queues)

        (message,) = await take_back(queues)
        assert message.headers == {
            "trace": "abc", "x-requeue-count": 1, "x-routing-key": "chat-1",
        }  # fmt: skip

    async def test_leaves_what_is_not_selected_in_its_order(self, queues: Queues) -> None:
        """The others are neither gone nor moved."""
        await queues.declare()
        messages = [planned("e-1"), started("e-2"), planned("e-3"), started("e-4")]
        letters = [*map(body, messages), b"broken"]
        await put(queues, letters)

        await requeue_all(queues, Selection(kind="event_started"))

        requeued = [message.body for message in await take_back(queues)]
        left = [letter.body for letter in await queues.take_dead_letters()]
        assert requeued == [letters[1], letters[3]]
        assert left == [letters[0], letters[2], letters[4]]

    @pytest.mark.parametrize("stop", [3, 250])
    async def test_keeps_the_order_of_many(self, queues: Queues, stop: int) -> None:
        """Look after look, each stopping anywhere, with some letters discarded."""
        await queues.declare()
        expected = list(range(700))
        await put(queues, [str(number).encode() for number in expected])

        for last in (None, stop, None, stop):
            async with dead_letter_queue(*place_of(queues)) as queue:
                async for letter in queue.letters(EVERY):
                    if letter.number % 3 == 0:
                        await queue.discard([letter], unheard)
                        expected.remove(int(letter.body))
                    if letter.number == last:
                        break

        assert [int(letter.body) for letter in await queues.take_dead_letters()] == expected

    async def test_looks_at_none_twice(self, queues: Queues) -> None:
        """What is rejected again while the command goes on is left for the next one."""
        await queues.declare()
        more_than_a_page = [b"first"] * (FIRST_PAGE + 20)
        await put(queues, more_than_a_page)

        seen = []
        async with dead_letter_queue(*place_of(queues)) as queue:
            async for letter in queue.letters(EVERY):
                seen.append(letter.body)
                await queue.requeue([letter], unheard)
                if letter.number == 1:
                    await put(queues, [b"again", b"again"])

        assert seen == more_than_a_page
        assert len(await queues.take_dead_letters()) == 2

    async def test_that_the_queue_does_not_take_leaves_the_letter(self, queues: Queues) -> None:
        """The broker is asked to say so, and the dead letter stays."""
        await queues.declare()
        await put(queues, [b"raw"], message_id="a-1")
        async with queues.channel() as channel:
            await channel.queue_delete(queues.name)

        with pytest.raises(BrokerRefused, match="a-1 back into queue"):
            await requeue_all(queues)

        assert len(await queues.take_dead_letters()) == 1


class TestTheCount:
    async def test_survives_the_next_rejection(
        self, queues: Queues, start_worker: StartWorker
    ) -> None:
        """With the routing key, whatever else the publisher put beside them."""
        await queues.declare()
        await queues.publish([b"broken"], headers={"large": "x" * 40_000, "more": "x" * 40_000})
        worker = await start_worker()

        for times in (1, 2, 3):
            await worker.wait_until_settled(times)
            async with dead_letter_queue(*place_of(queues)) as queue:
                (letter,) = [letter async for letter in queue.letters(EVERY)]
                assert (letter.requeue_count, letter.routing_key) == (times - 1, "chat-1")
                assert (letter.reason, letter.kind) == ("not_json", None)
                await queue.requeue([letter], unheard)

    async def test_stops_at_three(
        self, queues: Queues, start_worker: StartWorker, start_command: StartWorker
    ) -> None:
        """Ten requeues of a poison send it back three times; --force does once more."""
        await queues.declare()
        await queues.publish([b"poison"])
        worker = await start_worker()
        await worker.wait_until_settled(1)

        outputs = []
        for times in range(1, 11):
            command = await start_command(*REQUEUE_ALL)
            assert await command.exit_code() == 0
            outputs.append(command.output)
            await worker.wait_until_settled(min(times, 3) + 1)
        forced = await start_command(*REQUEUE_ALL, "--force")
        await forced.exit_code()
        await worker.wait_until_settled(5)

        assert sum("1 of 1 dead letters requeued" in output for output in outputs) == 3
        assert "requeued 3 times already" in outputs[3]
        assert "0 of 1 dead letters requeued; 1 skipped" in outputs[3]
        assert worker.settled == 5
        (letter,) = await queues.take_dead_letters()
        assert letter.headers["x-requeue-count"] == 4


class TestGarbage:
    """What no client library would publish can be looked at, requeued and discarded."""

    async def test_in_headers_is_left_out_and_named(
        self, queues: Queues, node: RabbitMQNode
    ) -> None:
        """A header that cannot be encoded again costs the message nothing else."""
        await queues.declare()
        table = long_text(b"odd", b"\xff\xfe") + long_text(b"trace", b"abc")
        async with raw_publisher(node.port) as raw:
            await raw.publish(queues.dead_letters, b"\xff", headers=table)

        assert await requeue_all(queues) == [["odd"]]

        (message,) = await take_back(queues)
        assert message.body == b"\xff"
        assert message.headers["trace"] == "abc"
        assert message.headers["x-requeue-count"] == 1

    async def test_does_not_hide_the_reason_of_the_broker(
        self, queues: Queues, node: RabbitMQNode
    ) -> None:
        """Neither headers that cannot be decoded nor a body that is no message."""
        await queues.declare()
        table = long_text(b"\xff", b"?") + long_text(b"x-first-death-reason", b"delivery_limit")
        async with raw_publisher(node.port) as raw:
            await raw.publish(queues.dead_letters, b"\x00\xff", headers=table)
            await raw.publish(queues.dead_letters, b"{}", headers=table, timestamp=b"\xff" * 8)

        async with dead_letter_queue(*place_of(queues)) as queue:
            letters = [letter async for letter in queue.letters(EVERY)]
            for letter in letters:
                await queue.requeue([letter], unheard)

        assert [letter.reason for letter in letters] == ["delivery_limit", "delivery_limit"]
        assert [each.body for each in await take_back(queues)] == [b"\x00\xff", b"{}"]

    async def test_that_the_broker_dead_lettered_has_its_reason_and_time(
        self, queues: Queues
    ) -> None:
        """A message that expired says so, with the queue that it was in."""
        await queues.declare()
        await queues.publish([b"\xff"], headers={"x-reason": "the publisher's"}, expiration=0)

        async def look() -> str | None:
            async with dead_letter_queue(*place_of(queues)) as queue:
                async for letter in queue.letters(EVERY):
                    assert queues.name in letter.detail
                    assert letter.rejected_at is not None
                    return letter.reason
            return None

        assert await eventually(look) == "expired"


class TestABreakInTheMiddle:
    async def test_by_a_kill_loses_nothing(
        self,
        queues: Queues,
        proxy: Proxy,
        database: Path,
        start_worker: StartWorker,
        start_command: StartWorker,
    ) -> None:
        """Each message is in a queue at least; after another run each is applied once."""
        await queues.declare()
        await _lengthen(proxy)
        messages = [planned(f"e-{number:04}") for number in range(MANY)]
        await put(queues, messages)
        command = await start_command(*REQUEUE_ALL, amqp_url=proxy.url)
        await eventually(lambda: command.output.count("\n") > 100)
        await command.kill()

        await eventually(lambda: _has_all(queues, MANY))
        left = await _depth(queues, queues.dead_letters)
        again = await start_command(*REQUEUE_ALL)
        assert await again.exit_code() == 0
        requeued = (await queues.depth()).ready
        worker = await start_worker()
        await worker.wait_until_settled(requeued)

        assert 0 < left < MANY
        assert f"{left:,} of {left:,} dead letters requeued" in again.output
        assert await queues.take_dead_letters() == []
        assert rows(database) == expected_rows(messages)
        assert len(log(database)) == MANY
        assert worker.total("applied") == MANY
        assert worker.total("duplicate") == requeued - MANY

    async def test_by_the_operator_says_how_far_it_came(
        self, queues: Queues, proxy: Proxy, start_command: StartWorker
    ) -> None:
        """Ctrl-C ends it with the number that was requeued, and that number is in the queue."""
        await queues.declare()
        await _lengthen(proxy)
        await put(queues, [b"raw"] * MANY)
        command = await start_command(*REQUEUE_ALL, amqp_url=proxy.url)
        await eventually(lambda: command.output.count("\n") > 100)
        command.send(signal.SIGINT)

        code = await command.exit_code()
        await eventually(lambda: _has_all(queues, MANY))
        requeued = (await queues.depth()).ready

        assert code != 0
        assert 0 < requeued < MANY
        told = re.search(r"([\d,]+) of 2,000 dead letters requeued", command.output)
        assert told is not None
        # The message at which it came may have been on its way.
        assert requeued - 1 <= int(told[1].replace(",", "")) <= requeued
        assert "Traceback" not in command.output

    async def test_between_confirm_and_ack_makes_duplicates(
        self, queues: Queues, proxy: Proxy, database: Path, start_worker: StartWorker
    ) -> None:
        """The worst moment: every message is in both queues, and is applied once."""
        await queues.declare()
        messages = [planned(f"e-{number}") for number in range(5)]
        await put(queues, messages)
        await proxy.listen()
        proxy.swallows = BASIC_ACK
        with pytest.raises(SessionLost, match="the last ones may be there still"):
            await _requeue_and(proxy.cut, queues, proxy.url)
        await eventually(lambda: _has_all(queues, 10))

        await requeue_all(queues)
        worker = await start_worker()
        await worker.wait_until_settled(10)

        assert rows(database) == expected_rows(messages)
        assert (worker.total("applied"), worker.total("duplicate")) == (5, 5)

    async def test_of_the_connection_is_said(self, queues: Queues, proxy: Proxy) -> None:
        """The message at which it came is named; the letters are all there."""
        await queues.declare()
        await put(queues, [b"1", b"2"], message_id="a-1")
        await proxy.listen()

        with pytest.raises(SessionLost, match="ended while message a-1 was requeued"):
            await _cut_and_requeue(proxy, queues)

        await eventually(lambda: _has_all(queues, 2))


async def _lengthen(proxy: Proxy) -> None:
    """Make the way to the broker so long that a requeue of many takes a while on any machine."""
    proxy.delay_seconds = 0.005
    await proxy.listen()


async def _requeue_and(act: Callable[[], None], queues: Queues, url: str) -> None:
    """Requeue all, and do something before the queue is let go."""
    async with dead_letter_queue(*place_of(queues, url)) as queue:
        async for letter in queue.letters(EVERY):
            await queue.requeue([letter], unheard)
        act()


async def _cut_and_requeue(proxy: Proxy, queues: Queues) -> None:
    """Cut the connection before the first is requeued."""
    async with dead_letter_queue(*place_of(queues, proxy.url)) as queue:
        async for letter in queue.letters(EVERY):
            proxy.cut()
            await queue.requeue([letter], unheard)


async def _depth(queues: Queues, name: str) -> int:
    async with queues.channel() as channel:
        queue = await channel.declare_queue(name, passive=True)
        return queue.declaration_result.message_count or 0


async def _has_all(queues: Queues, count: int) -> bool:
    """Tell whether the broker has taken back what was not acked."""
    return (await queues.depth()).ready + await _depth(queues, queues.dead_letters) >= count
