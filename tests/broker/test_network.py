"""What networks do to a worker's connections, and what machines do to a worker.

Most faults take three heartbeats to be noticed, so they happen to several workers at once, each
with its own link. A test waits for the end of one story and checks the result.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.chaos.footprint import Footprint
from tests.database import locked
from tests.link import Ending, Link, linked
from tests.processes import environment, worker_process
from tests.queues import DELIVERY_LIMIT
from tests.rabbitmq import RabbitMQNode
from tests.relay import Way

# The stories run in a loop that lives as long as their workers.
pytestmark = pytest.mark.asyncio(loop_scope="module")

# If each cut cost a message a delivery, the broker would dead-letter it.
CUTS = 2 * DELIVERY_LIMIT
# More would fill SQLite's cache meanwhile, which looks like a leak.
UNACKED = 100
# Whatever the first losses load and allocate stays.
WARM_CUTS = 5
# The events take half a minute to arrive, which is longer than a silence may last.
BYTES_PER_SECOND, DELAY_SECONDS, EVENTS_ON_A_SLOW_LINK = 4_096, 0.3, 150
# A body frame that announces as much as its four bytes of length can express.
ENDLESS = b"\x03\x00\x01\xff\xff\xff\xff"

Story = Callable[[Link], Awaitable[None]]


def silence(*ways: Way) -> Story:
    async def story(link: Link) -> None:
        link.proxy.stall(*ways)
        await link.publish(50)
        await link.until_lost()
        link.proxy.flow()

    return story


def noise(instead: bytes) -> Story:
    async def story(link: Link) -> None:
        link.proxy.spoils = lambda _: instead
        await link.publish(50)
        await link.until_lost()

    return story


async def a_slow_link(link: Link) -> None:
    link.proxy.bytes_per_second, link.proxy.delay_seconds = BYTES_PER_SECOND, DELAY_SECONDS
    await link.publish(EVENTS_ON_A_SLOW_LINK)
    await link.until_committed()
    # The delay stays, so that later bytes do not overtake those in flight.
    link.proxy.bytes_per_second = None


async def a_frozen_worker(link: Link) -> None:
    folder = link.database.parent
    common = {**link.queues.settings, "database": link.database, "secrets_dir": folder}
    standby = worker_process("run", settings=environment(**common), folder=folder)
    async with standby as second:
        await second.wait_for_log("standing_by")
        await link.publish(1_000)
        await link.worker.wait_until_settled(3)
        link.worker.send(signal.SIGSTOP)
        await link.until_dropped()
        link.worker.send(signal.SIGCONT)
        # It may have settled everything before it was stopped.
        await link.worker.wait_for_log("connected", times=2)
        await link.until_committed()
        assert second.said("taking_over") == []


async def cuts(link: Link) -> None:
    before = None
    for number in range(1, CUTS + 1):
        # The window opens with the first message of a session.
        await link.publish(1)
        await link.until_committed()
        await link.until_delivered()
        with locked(link.database):
            await link.publish(UNACKED // 2)
            await link.until_delivered()
            link.proxy.cut()
        await link.worker.wait_for_log("connected", times=number + 1)
        if number == WARM_CUTS:
            await link.until_committed()
            before = Footprint.of(link.worker.pid)
    await link.until_committed()
    assert before is not None
    assert Footprint.of(link.worker.pid).growth(before) == ""


STORIES: dict[str, Story] = {
    "silence both ways": silence(),
    "silence to the broker": silence(Way.TO_SERVER),
    "silence to the worker": silence(Way.TO_WORKER),
    "noise without end": noise(ENDLESS),
    "noise of another protocol": noise(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "a slow link": a_slow_link,
    "a frozen worker": a_frozen_worker,
    "cuts": cuts,
}
SILENCES = [name for name in STORIES if name.startswith("silence")]
NOISES = [name for name in STORIES if name.startswith("noise")]

Endings = dict[str, asyncio.Task[Ending]]


async def play(story: Story, node: RabbitMQNode, folder: Path) -> Ending:
    async with linked(node, folder) as link:
        await story(link)
        return await link.end()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def endings(
    running_node: RabbitMQNode, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Endings]:
    """Play all stories at once; those that no test waits for end with the module."""
    tasks = {
        name: asyncio.create_task(play(story, running_node, tmp_path_factory.mktemp("link")))
        for name, story in STORIES.items()
    }
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


class TestALink:
    @pytest.mark.parametrize("name", SILENCES)
    async def test_that_falls_silent_is_left(self, endings: Endings, name: str) -> None:
        """Open connections that carry nothing are found by their missing heartbeats."""
        ending = await endings[name]

        ending.require_whole()
        (lost,) = ending.worker.said("connection_lost")
        assert lost["hint"]
        assert len(ending.worker.said("connected")) >= 2

    @pytest.mark.parametrize("name", NOISES)
    async def test_that_promises_endless_bytes_is_left(self, endings: Endings, name: str) -> None:
        """Bytes that look like the beginning of a long frame do not count as a sign of life."""
        ending = await endings[name]

        ending.require_whole()
        assert len(ending.worker.said("connection_lost")) == 1

    async def test_that_is_slow_is_kept(self, endings: Endings) -> None:
        """Deliveries that delay every heartbeat count as signs of life, too."""
        ending = await endings["a slow link"]

        ending.require_whole()
        assert ending.worker.said("connection_lost") == []
        assert ending.worker.total("duplicate") == 0

    async def test_that_is_cut_again_and_again_costs_nothing(self, endings: Endings) -> None:
        """No healthy message reaches the delivery limit, and no descriptor or thread is left."""
        ending = await endings["cuts"]

        ending.require_whole()
        assert len(ending.worker.said("connected")) == CUTS + 1


class TestAFrozenWorker:
    async def test_finds_its_session_gone_and_goes_on(self, endings: Endings) -> None:
        """The broker has dropped it, but no standby took over, because it still has the file."""
        ending = await endings["a frozen worker"]

        ending.require_whole()
        assert len(ending.worker.said("connected")) >= 2
