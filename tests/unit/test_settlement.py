import asyncio
from typing import Any, cast

import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelInvalidStateError

from worker.broker.life import Life
from worker.broker.settlement import Settlement
from worker.deliveries import Delivery, Outcome, Verdict
from worker.errors import SessionLost

# aiormq gives what waits for a channel that closes the reason, if it knows one.
ENDINGS = [ChannelInvalidStateError("closed"), ConnectionResetError(), Exception()]


class ChannelThatEnds:
    """What a settlement acks on, at the moment when its connection is cut."""

    def __init__(self, ending: BaseException) -> None:
        self._ending = ending

    async def basic_ack(self, *_: Any, **__: Any) -> None:
        """End."""
        raise self._ending


async def dead_letter(_: Outcome) -> None:
    raise AssertionError("nothing was rejected")


class TestAnAck:
    @pytest.mark.parametrize("ending", [*ENDINGS, asyncio.CancelledError()], ids=repr)
    async def test_that_cannot_be_sent_ends_the_session(self, ending: BaseException) -> None:
        """However the library says it: the worker opens another, and does not crash."""
        channel = cast("AbstractChannel", ChannelThatEnds(ending))
        settlement = Settlement(channel, dead_letter, Life(), 1_000, lambda _: None, lambda _: None)

        async with settlement:
            with pytest.raises(SessionLost):
                await settlement.settle([Outcome(Delivery(b"", tag=1), Verdict.APPLIED)])

    async def test_that_a_bug_prevents_does_not_hide_it(self) -> None:
        """Only what the library says of an ending is one."""
        channel = cast("AbstractChannel", ChannelThatEnds(ZeroDivisionError()))
        settlement = Settlement(channel, dead_letter, Life(), 1_000, lambda _: None, lambda _: None)

        async with settlement:
            with pytest.raises(ZeroDivisionError):
                await settlement.settle([Outcome(Delivery(b"", tag=1), Verdict.APPLIED)])
