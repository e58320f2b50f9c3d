from contextlib import suppress

import pytest
from aio_pika.abc import AbstractIncomingMessage

from tests.letters import EVERY, place_of, put, requeue_all, take_back, unheard
from tests.processes import StartWorker
from tests.proxy import Proxy
from tests.queues import Queues
from tests.waiting import eventually
from worker.broker import pages
from worker.broker.dead_letter_queue import dead_letter_queue
from worker.errors import BrokerRefused, SessionLost


class TestTwoCommands:
    """Only one command at a time holds the dead letters."""

    async def test_exclude_each_other(self, queues: Queues, start_command: StartWorker) -> None:
        """The second command changes nothing and fails; after the first has ended, it works."""
        await queues.declare()
        await put(queues, [b"1", b"2"])
        async with dead_letter_queue(*place_of(queues)) as queue:
            async for _ in queue.letters(EVERY):
                break
            second = await start_command("dead-letters", "discard", "--all", "--yes")
            assert await second.exit_code() == 1

        third = await start_command("dead-letters", "discard", "--all", "--yes")
        assert await third.exit_code() == 0
        assert "Another command holds the dead letters" in second.output
        assert "when that one has ended" in second.output
        assert "2 of 2 dead letters discarded." in third.output

    async def test_end_with_their_connections(self, queues: Queues, proxy: Proxy) -> None:
        """The broker releases the letters of a command that was cut off."""
        await queues.declare()
        await put(queues, [b"1"])
        await proxy.listen()
        with pytest.raises(SessionLost):
            await _look_and_cut(queues, proxy)

        async def looks() -> bool:
            with suppress(BrokerRefused):
                async with dead_letter_queue(*place_of(queues)):
                    return True
            return False

        assert await eventually(looks)

    async def test_do_not_share_with_another_program(self, queues: Queues) -> None:
        """A program that consumes from the dead-letter queue must end first."""
        await queues.declare()
        async with queues.channel() as channel:
            await (await channel.get_queue(queues.dead_letters)).consume(_take)

            with pytest.raises(BrokerRefused, match="consumers: 1"):
                await requeue_all(queues)

    async def test_report_the_letters_that_did_not_arrive(
        self, queues: Queues, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Letters that another program took away are reported."""
        monkeypatch.setattr(pages, "DELIVERY_SECONDS", 0.1)
        await queues.declare()
        await put(queues, [b"1", b"2", b"3"])

        with pytest.raises(BrokerRefused, match="1 of 3 dead letters could not be read"):
            await _take_one_and_requeue(queues)

        assert len(await take_back(queues)) == 2


async def _take(_: AbstractIncomingMessage) -> None:
    """Keep a dead letter unacked."""


async def _look_and_cut(queues: Queues, proxy: Proxy) -> None:
    async with dead_letter_queue(*place_of(queues, proxy.url)):
        proxy.cut()


async def _take_one_and_requeue(queues: Queues) -> None:
    async with dead_letter_queue(*place_of(queues)) as queue, queues.channel() as channel:
        await (await channel.get_queue(queues.dead_letters)).get(no_ack=True)
        async for page in queue.pages(EVERY):
            await queue.requeue(page, unheard)
