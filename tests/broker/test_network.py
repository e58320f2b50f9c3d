"""What networks do to a worker's connections, and machines to a worker.

Most of it takes three heartbeats to be noticed, so it happens to several workers at once, each with
a link of its own; a test awaits the end of one story and looks at what there is.
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
from tests.proxy import Way
from tests.queues import DELIVERY_LIMIT
from tests.rabbitmq import RabbitMQNode

# The stories are told in a loop that lives as long as their workers.
pytestmark = pytest.mark.asyncio(loop_scope="module")

# A message that was lost at each of them would be dead-lettered by the broker.
CUTS = 2 * DELIVERY_LIMIT
# More would fill SQLite's cache meanwhile, which looks like a leak.
UNACKED = 100
# What is loaded and allocated at a loss is there from then on.
WARM_CUTS = 5
# Half a minute for what follows: longer than a silence may last.
BYTES_PER_SECOND, DELAY_SECONDS, EVENTS_ON_A_SLOW_LINK = 4_096, 0.3, 150
# A body's frame that announces as much as its four bytes of length can say.
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
    # Still a long way: what is on it must not be overtaken by what is sent afterwards.
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
    "silence to the broker": silence(Way.TO_BROKER),
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
    """Play all stories at once; whatever nobody waited for ends with the module."""
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
        """Connections that are open and carry nothing are found by their missing heartbeats."""
        ending = await endings[name]

        ending.require_whole()
        (lost,) = ending.worker.said("connection_lost")
        assert lost["hint"]
        assert len(ending.worker.said("connected")) >= 2

    @pytest.mark.parametrize("name", NOISES)
    async def test_that_promises_bytes_for_ever_is_left(self, endings: Endings, name: str) -> None:
        """What a client can take for the beginning of a long frame is no sign of life."""
        ending = await endings[name]

        ending.require_whole()
        assert len(ending.worker.said("connection_lost")) == 1

    async def test_that_is_slow_is_kept(self, endings: Endings) -> None:
        """Deliveries in front of every heartbeat are signs of life, too."""
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
        """The broker has given it up meanwhile; a standby has not, for it still has the file."""
        ending = await endings["a frozen worker"]

        ending.require_whole()
        assert len(ending.worker.said("connected")) >= 2
