import asyncio
from typing import Any, cast

import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelInvalidStateError

from tests.waiting import eventually, turns
from worker.broker.life import Life
from worker.broker.settlement import BLOCKED_SECONDS, IN_FLIGHT_BYTES, Settlement
from worker.deliveries import Delivery, Outcome, Verdict
from worker.errors import BrokerRefused, SessionLost

# aiormq passes the reason, if it knows one, to whatever waits for a channel that closes.
ENDINGS = [ChannelInvalidStateError("closed"), ConnectionResetError(), Exception()]


class ChannelThatEnds:
    """A settlement's channel whose connection is cut during the ack."""

    def __init__(self, ending: BaseException) -> None:
        self._ending = ending

    async def basic_ack(self, *_: Any, **__: Any) -> None:
        """End the channel."""
        raise self._ending


async def dead_letter(_: Outcome) -> None:
    raise AssertionError("nothing was rejected")


class TestAnAck:
    @pytest.mark.parametrize("ending", [*ENDINGS, asyncio.CancelledError()], ids=repr)
    async def test_that_cannot_be_sent_ends_the_session(self, ending: BaseException) -> None:
        """Whatever the library raises, the worker opens another session and does not crash."""
        channel = cast("AbstractChannel", ChannelThatEnds(ending))
        settlement = Settlement(channel, dead_letter, Life(), 1_000, lambda _: None, lambda _: None)

        async with settlement:
            with pytest.raises(SessionLost):
                await settlement.settle([Outcome(Delivery(b"", tag=1), Verdict.APPLIED)])

    async def test_that_a_bug_prevents_does_not_hide_it(self) -> None:
        """Only the library's errors about an ended connection are handled."""
        channel = cast("AbstractChannel", ChannelThatEnds(ZeroDivisionError()))
        settlement = Settlement(channel, dead_letter, Life(), 1_000, lambda _: None, lambda _: None)

        async with settlement:
            with pytest.raises(ZeroDivisionError):
                await settlement.settle([Outcome(Delivery(b"", tag=1), Verdict.APPLIED)])


class Acks:
    """A channel that records what is acked on it."""

    def __init__(self) -> None:
        self.acked: list[tuple[int, bool]] = []

    async def basic_ack(self, tag: int, *, multiple: bool = False) -> None:
        """Record the tag, and whether it stands for all before it."""
        self.acked.append((tag, multiple))


class Broker:
    """A broker that confirms dead letters one by one, each after some seconds of a fake clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.later = 0.0
        loop = asyncio.get_running_loop()
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self.later)
        self.seconds_for_each = 0.0
        self.confirms = asyncio.Event()
        self.confirms.set()
        self.refusal: BrokerRefused | None = None
        self.in_flight = self.most_in_flight = 0
        self.published: list[int] = []
        self._turn = asyncio.Lock()

    async def dead_letter(self, outcome: Outcome) -> None:
        """Return when the dead letter is confirmed."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.published.append(outcome.delivery.tag)
        try:
            async with self._turn:
                await self.confirms.wait()
                await turns(3)
                self.later += self.seconds_for_each
                if self.refusal:
                    raise self.refusal
        finally:
            self.in_flight -= 1


def rejected(*tags: int, body: bytes = b"") -> list[Outcome]:
    return [Outcome(Delivery(body, tag=tag), Verdict.REJECTED) for tag in tags]


def good(tag: int) -> Outcome:
    return Outcome(Delivery(b"", tag=tag), Verdict.APPLIED)


@pytest.fixture
async def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    return Broker(monkeypatch)


class TestDeadLetters:
    """What happens to rejected messages and to those around them."""

    def settlement(self, broker: Broker, acks: Acks, prefetch: int = 100) -> Settlement:
        """Return a settlement that records what it reports."""
        self.told: list[BrokerRefused | None] = []
        self.late: list[Outcome] = []
        return Settlement(
            cast("AbstractChannel", acks),
            broker.dead_letter,
            Life(),
            prefetch,
            self.told.append,
            self.late.extend,
        )

    async def test_that_are_confirmed_slowly_are_not_blocked(self, broker: Broker) -> None:
        """Each confirm is progress, however long all of them take together."""
        acks = Acks()
        broker.seconds_for_each = BLOCKED_SECONDS - 1

        async with self.settlement(broker, acks) as settlement:
            outcomes = [*rejected(*range(1, 21)), good(21)]
            assert await settlement.settle(outcomes) == outcomes

        assert self.told == []
        assert acks.acked == [(21, True)]
        assert broker.most_in_flight == 20

    async def test_that_are_not_confirmed_are_blocked(self, broker: Broker) -> None:
        """Other messages are acked; the rejected ones are acked once confirmed, with a report."""
        acks = Acks()
        broker.confirms.clear()

        async with self.settlement(broker, acks, prefetch=3) as settlement:
            settling = asyncio.create_task(settlement.settle([*rejected(1), good(2)]))
            await eventually(lambda: broker.published)
            broker.later += BLOCKED_SECONDS + 1
            assert await settling == [good(2)]
            assert acks.acked == [(2, False)]
            assert await settlement.settle([*rejected(3), good(4)]) == [good(4)]
            assert await settlement.settle(rejected(5)) == []
            assert acks.acked == [(2, False), (4, False)]
            broker.confirms.set()
            await eventually(lambda: self.told[-1] is None)
            assert await settlement.settle([good(6)]) == [good(6)]

        alarm, full, over = self.told
        assert "alarm" in str(alarm)
        assert "fill the prefetch (3), so the messages behind them wait" in str(full)
        assert "prefetch" not in str(alarm)
        assert over is None
        assert self.late == rejected(1, 3, 5)
        assert acks.acked[2:] == [(1, False), (3, False), (5, False), (6, True)]

    async def test_that_are_refused_are_tried_one_at_a_time(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A full queue is not flooded, and one bad dead letter does not hold up others."""
        monkeypatch.setattr("worker.broker.settlement.RETRY_SECONDS", 0)
        acks = Acks()
        broker.refusal = BrokerRefused("full", "make room")

        async with self.settlement(broker, acks) as settlement:
            assert await settlement.settle(rejected(1, 2, 3)) == []
            await eventually(lambda: len(broker.published) >= 6)
            broker.refusal = None
            await eventually(lambda: self.told[-1] is None)

        assert broker.published[:6] == [1, 2, 3, 1, 2, 3]
        assert [str(each) for each in self.told] == ["full Hint: make room", "None"]
        assert sorted(acks.acked) == [(1, False), (2, False), (3, False)]

    async def test_in_flight_are_bounded_in_bytes(self, broker: Broker) -> None:
        """Large bodies are published a few at a time, and no body is too large."""
        acks = Acks()
        third = IN_FLIGHT_BYTES // 3

        async with self.settlement(broker, acks) as settlement:
            await settlement.settle(rejected(1, 2, 3, 4, body=bytes(third)))
            assert broker.most_in_flight == 3
            await settlement.settle(rejected(5, body=bytes(4 * third)))

        assert self.told == []
        assert acks.acked == [(4, True), (5, True)]
