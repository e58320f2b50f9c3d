import re
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.builders import body, planned, started
from tests.database import log, rows
from tests.letters import EVERY, headers, place_of, put, requeue_all, take_back, unheard
from tests.oracle import expected_rows
from tests.processes import StartWorker
from tests.proxy import BASIC_ACK, Proxy
from tests.queues import Queues
from tests.relay import Way
from tests.waiting import eventually
from worker.broker import pages
from worker.broker.dead_letter_queue import Selection, dead_letter_queue
from worker.broker.pages import FIRST_PAGE
from worker.errors import BrokerRefused, SessionLost

MANY = 2_000
REQUEUE_ALL = ("dead-letters", "requeue", "--all", "--yes")
SENT_AT = datetime(2026, 4, 27, 10, 39, tzinfo=UTC)


class TestARequeue:
    async def test_reaches_the_queue_of_this_worker_alone(self, queues: Queues) -> None:
        """Other queues of the exchange, and those named in a CC header, get no copy."""
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
        """Body and properties are the original ones, except for the expiration."""
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
        """Only the publisher's headers, the count and the routing key are left."""
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
        """The other letters are neither removed nor moved."""
        await queues.declare()
        messages = [planned("e-1"), started("e-2"), planned("e-3"), started("e-4")]
        letters = [*map(body, messages), b"broken"]
        await put(queues, letters)

        await requeue_all(queues, Selection(kind="event_started"))

        requeued = [message.body for message in await take_back(queues)]
        left = [letter.body for letter in await queues.take_dead_letters()]
        assert requeued == [letters[1], letters[3]]
        assert left == [letters[0], letters[2], letters[4]]

    @pytest.mark.parametrize(("stop", "page"), [(3, 1_000), (250, 10)])
    async def test_keeps_the_order_of_many(
        self, queues: Queues, monkeypatch: pytest.MonkeyPatch, stop: int, page: int
    ) -> None:
        """Commands that stop anywhere and discard some keep the order, on one page or seventy."""
        monkeypatch.setattr(pages, "PAGE", page)
        monkeypatch.setattr(pages, "FIRST_PAGE", min(page, FIRST_PAGE))
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
        """A message that is rejected again during the command is left to the next one."""
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

    async def test_sends_no_letter_back_twice(
        self, queues: Queues, start_worker: StartWorker, start_command: StartWorker
    ) -> None:
        """A worker that rejects them again at once does not use up their three requeues."""
        await queues.declare()
        await put(queues, [b"%d" % number for number in range(FIRST_PAGE + 200)])
        worker = await start_worker()
        await worker.wait_for_log("connected")

        command = await start_command(*REQUEUE_ALL)
        assert await command.exit_code() == 0
        await worker.wait_until_settled(FIRST_PAGE + 200)

        letters = await queues.take_dead_letters()
        assert "300 of 300 dead letters requeued." in command.output
        assert [letter.headers["x-requeue-count"] for letter in letters] == [1] * 300

    async def test_that_the_queue_does_not_take_leaves_the_letter(self, queues: Queues) -> None:
        """The broker reports the refusal, and the dead letter stays."""
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
        """The routing key survives, too, whatever other headers the publisher set."""
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
        """Ten requeues of a poison message send it back three times; --force sends it once more."""
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

        assert sum("1 of 1 dead letter requeued" in output for output in outputs) == 3
        assert "already requeued 3 times" in outputs[3]
        assert "0 of 1 dead letter requeued; 1 skipped" in outputs[3]
        assert worker.settled == 5
        (letter,) = await queues.take_dead_letters()
        assert letter.headers["x-requeue-count"] == 4


class TestABreakInTheMiddle:
    @pytest.mark.parametrize("way", list(Way), ids=str)
    async def test_by_a_broker_that_falls_silent_is_reported(
        self, queues: Queues, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, way: Way
    ) -> None:
        """Whether sending or receiving fails, the letters are still there."""
        for name in ("pages.ANSWER_SECONDS", "dead_letter_queue.CONFIRM_SECONDS"):
            monkeypatch.setattr(f"worker.broker.{name}", 0.2)
        await queues.declare()
        await put(queues, [b"1", b"2"])
        await proxy.listen()

        with pytest.raises(SessionLost, match="has not confirmed a requeued message"):
            await _requeue_after(lambda: proxy.stall(way), queues, proxy.url)
        proxy.flow()

        await eventually(lambda: _has_all(queues, 2))

    async def test_by_a_broker_that_closes_is_reported(
        self, queues: Queues, proxy: Proxy, start_command: StartWorker
    ) -> None:
        """The command says how far it came and what to do, and fails without a traceback."""
        await queues.declare()
        await _lengthen(proxy)
        await put(queues, [b"raw"] * MANY)
        command = await start_command(*REQUEUE_ALL, amqp_url=proxy.url)
        await eventually(lambda: command.output.count("\n") > 100)
        proxy.cut()

        assert await command.exit_code() == 1
        assert re.search(r"[\d,]+ of 2,000 dead letters requeued", command.output)
        assert "The connection ended while" in command.output
        # Which of the two connections has noticed it decides which hint is given.
        assert re.search("run the command again|see 'dead-letters list'", command.output)
        assert "Traceback" not in command.output
        await eventually(lambda: _has_all(queues, MANY))

    async def test_by_a_kill_loses_nothing(
        self,
        queues: Queues,
        proxy: Proxy,
        database: Path,
        start_worker: StartWorker,
        start_command: StartWorker,
    ) -> None:
        """Each message is in at least one queue; after another run, each is applied once."""
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

    async def test_by_the_operator_reports_how_far_it_came(
        self, queues: Queues, proxy: Proxy, start_command: StartWorker
    ) -> None:
        """Ctrl-C ends it with the number of requeued letters, which is the number in the queue."""
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
        # The message that was in flight may or may not have arrived.
        assert requeued - 1 <= int(told[1].replace(",", "")) <= requeued
        assert "Traceback" not in command.output

    async def test_between_confirm_and_ack_makes_duplicates(
        self, queues: Queues, proxy: Proxy, database: Path, start_worker: StartWorker
    ) -> None:
        """At the worst moment every message is in both queues, and it is still applied once."""
        await queues.declare()
        messages = [planned(f"e-{number}") for number in range(5)]
        await put(queues, messages)
        await proxy.listen()
        proxy.swallows = BASIC_ACK
        with pytest.raises(SessionLost, match="the last ones may still be in the queue"):
            await _requeue_and(proxy.cut, queues, proxy.url)
        await eventually(lambda: _has_all(queues, 10))

        await requeue_all(queues)
        worker = await start_worker()
        await worker.wait_until_settled(10)

        assert rows(database) == expected_rows(messages)
        assert (worker.total("applied"), worker.total("duplicate")) == (5, 5)

    async def test_of_the_connection_is_reported(self, queues: Queues, proxy: Proxy) -> None:
        """The error names the message in flight; all letters are still there."""
        await queues.declare()
        await put(queues, [b"1", b"2"], message_id="a-1")
        await proxy.listen()

        with pytest.raises(SessionLost, match="ended while message a-1 was requeued"):
            await _requeue_after(proxy.cut, queues, proxy.url)

        await eventually(lambda: _has_all(queues, 2))


async def _lengthen(proxy: Proxy) -> None:
    """Delay the connection to the broker, so that requeueing many takes a while everywhere."""
    proxy.delay_seconds = 0.005
    await proxy.listen()


async def _requeue_and(act: Callable[[], None], queues: Queues, url: str) -> None:
    """Requeue all letters, and act before the queue is released."""
    async with dead_letter_queue(*place_of(queues, url)) as queue:
        async for page in queue.pages(EVERY):
            await queue.requeue(page, unheard)
        act()


async def _requeue_after(act: Callable[[], None], queues: Queues, url: str) -> None:
    """Requeue all letters, and act before the first one."""
    async with dead_letter_queue(*place_of(queues, url)) as queue:
        async for page in queue.pages(EVERY):
            act()
            await queue.requeue(page, unheard)


async def _depth(queues: Queues, name: str) -> int:
    async with queues.channel() as channel:
        queue = await channel.declare_queue(name, passive=True)
        return queue.declaration_result.message_count or 0


async def _has_all(queues: Queues, count: int) -> bool:
    """Return whether the broker has taken back what was not acked."""
    return (await queues.depth()).ready + await _depth(queues, queues.dead_letters) >= count
