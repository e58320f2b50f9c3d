"""Ends a session at each moment of its work, and checks that it ends and leaves nothing behind.

What the library makes of a cancellation depends on the await at which it arrives. So the loss or
the drain comes after a number of turns of the loop, from zero to more than the work takes. Only
turns in which something arrives are counted, because nothing changes in the others.
"""

import asyncio
import gc
import itertools
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.builders import Message, planned
from tests.link import linked
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.waiting import eventually, patience, patiently, turns
from worker import service
from worker.broker import connection
from worker.broker.transport import Transport
from worker.broker_settings import address_of
from worker.deliveries import Outcome
from worker.errors import WorkerError
from worker.projections import load
from worker.projector import Projector
from worker.rebuild import create_tables
from worker.service import Service
from worker.settings import Settings
from worker.store.engines import store_of
from worker.store.sqlite.store import Writer
from worker.telemetry.health import Facts, State
from worker.telemetry.metrics import Metrics
from worker.telemetry.report import Report

# All work here awaits the broker, which takes far more turns.
LEAST_MOMENTS = 10
CUTS = 16
# An opening takes hundreds of turns, most of which only wake a task for the next one. So each
# ending is tried in every third turn: one ending in the first, another in the second, and so on.
SAMPLED = 3


class Steps(Report):
    """Records how far a worker has come, and stops it after its first session."""

    def __init__(self) -> None:
        facts = Facts()
        super().__init__(facts, Metrics(facts, sqlite_version="3"), 3_600)
        self.stop: Callable[[], None]
        self.reached: dict[str, asyncio.Event] = {}

    def at(self, step: str) -> asyncio.Event:
        """Return the event that is set once the worker has reached a step."""
        return self.reached.setdefault(step, asyncio.Event())

    def session_opened(self, unclaimed: WorkerError | None) -> None:
        """Record that a session is open; its topology is verified from now on."""
        super().session_opened(unclaimed)
        self.at("session").set()

    def connected(self, broker: str) -> None:
        """Record that it consumes."""
        super().connected(broker)
        self.at("open").set()

    def sizes(self, queue: int | None, dead_letters: int | None, wal_bytes: int) -> None:
        """Record that the topology has been verified."""
        super().sizes(queue, dead_letters, wal_bytes)
        self.at("verified").set()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Record that a batch is being settled."""
        with super().transaction():
            yield
        self.at("committed").set()

    def settled(self, outcomes: Sequence[Outcome], commit_seconds: float = 0.0) -> None:
        """Record that a batch was settled."""
        super().settled(outcomes, commit_seconds)
        self.at("settled").set()

    def connection_lost(self, error: WorkerError, attempt: int) -> None:
        """Stop, because one session is enough."""
        super().connection_lost(error, attempt)
        self.stop()


class Worker:
    """A worker that has become the writer and lives for one session."""

    def __init__(self, settings: Settings, writer: Writer) -> None:
        self.transports: list[Transport] = []
        """The transports of the connections, in the order in which they were opened."""
        self.steps = Steps()
        self.service = Service(
            settings, store_of(settings.store), load(), self.steps, lambda: address_of(settings)
        )
        self.steps.stop = self.service.stop
        self._writer = writer

    async def lives(self) -> None:
        """Open a session, consume until it ends, and close it, as the service does."""
        await self.service._prepare_tables(self._writer)
        await self.service._sessions(self._writer, Projector(load(), self._writer))


Make = Callable[[], Awaitable[Worker]]
Ending = Callable[[Worker], None]


def drain(worker: Worker) -> None:
    worker.service.stop()


def cut_consuming(worker: Worker) -> None:
    worker.transports[0].abort()


def cut_asking(worker: Worker) -> None:
    worker.transports[1].abort()


def cut_publishing(worker: Worker) -> None:
    worker.transports[2].abort()


def cut_all(worker: Worker) -> None:
    for transport in worker.transports:
        transport.abort()


ENDINGS: dict[str, Ending] = {
    "drain": drain,
    "cut": cut_all,
    "cut consuming": cut_consuming,
    "cut publishing": cut_publishing,
    "cut asking": cut_asking,
}
*_SHARED, PUBLISHING, ASKING = ENDINGS
of_one_that_settles = pytest.mark.parametrize(
    "ending", [ENDINGS[each] for each in (*_SHARED, PUBLISHING)], ids=[*_SHARED, PUBLISHING]
)
of_one_that_verifies = pytest.mark.parametrize(
    "ending", [ENDINGS[each] for each in (*_SHARED, ASKING)], ids=[*_SHARED, ASKING]
)
of_one_that_opens = pytest.mark.parametrize("ending", [drain, cut_all], ids=["drain", "cut"])


@pytest.fixture
async def make(
    queues: Queues,
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> AsyncIterator[Make]:
    """Return a function that makes a worker; check that none leaves an unretrieved exception."""
    workers: list[Worker] = []

    class Noted(Transport):
        async def create(self, *args: Any, **kwargs: Any) -> Any:
            created = await super().create(*args, **kwargs)
            workers[-1].transports.append(self)
            workers[-1].steps.at("first connection").set()
            return created

    monkeypatch.setattr(connection, "Transport", Noted)
    # No verification, except in the tests of it.
    monkeypatch.setattr(service, "VERIFY_EVERY_SECONDS", 3_600)
    settings = Settings(
        amqp_url=SecretStr(queues.url),
        exchange=queues.exchange,
        queue=queues.name,
        database=database,
    )
    await queues.declare()
    async with Writer(database) as writer:
        await create_tables(writer, load())

        async def make() -> Worker:
            workers.append(Worker(settings, writer))
            return workers[-1]

        yield make
    workers.clear()
    gc.collect()
    assert [each for each in caplog.get_records("call") if each.name == "asyncio"] == []


def sampled(ending: Ending) -> Iterable[int]:
    """Return the moments at which an ending is tried if there are many."""
    return itertools.count([*ENDINGS.values()].index(ending) % SAMPLED, SAMPLED)


class Turns(selectors.DefaultSelector):
    """Counts the turns of the event loop, and acts in one of them."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 0
        self._act: Callable[[], None] | None = None

    def after(self, number: int, act: Callable[[], None]) -> None:
        """Act after this many turns, before anything else in the turn."""
        self._left, self._act = number, act

    def act_now(self) -> None:
        """Act at once, unless it has acted already."""
        act, self._act = self._act, None
        if act is not None:
            act()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for events; a loop calls this once in each turn."""
        events = super().select(timeout)
        self._left -= 1
        if self._left < 0:
            self.act_now()
        return events


async def ends_at_every_moment(
    make: Make, first: str, last: str, ending: Ending, moments: Iterable[int]
) -> None:
    """End a session at each turn after a first step, up to the turn after the last step."""
    turns = Turns()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(turns)) as runner:
            runner.run(end_all(make, first, last, ending, turns, moments))

    # In its own loop, whose turns can be counted.
    await asyncio.to_thread(run)


async def end_all(
    make: Make, first: str, last: str, ending: Ending, turns: Turns, moments: Iterable[int]
) -> None:
    others = asyncio.all_tasks()
    is_late = False

    def end(worker: Worker) -> None:
        nonlocal is_late
        is_late = worker.steps.at(last).is_set()
        ending(worker)

    for moment in moments:
        worker = await make()
        living = asyncio.create_task(worker.lives())
        async with patiently():
            await worker.steps.at(first).wait()
            turns.after(moment, partial(end, worker))
            finished = asyncio.create_task(worker.steps.at(last).wait())
            await asyncio.wait({living, finished}, return_when=asyncio.FIRST_COMPLETED)
            finished.cancel()
        turns.act_now()

        await asyncio.wait({living}, timeout=patience())
        assert living.done(), f"hangs at moment {moment}"
        living.result()
        await eventually(lambda: asyncio.all_tasks() <= others)
        if is_late:
            break
    assert moment >= LEAST_MOMENTS


class TestALoss:
    async def test_is_reported_before_anything_is_closed(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While a peer keeps the worker from closing, it already reports that it is not ready."""
        told = []

        async def closing(part: Any) -> None:
            told.append(worker.steps.facts.state)
            await real(part)

        real = connection.closing
        monkeypatch.setattr(connection, "closing", closing)
        worker = await make()
        living = asyncio.create_task(worker.lives())
        async with patiently():
            await worker.steps.at("open").wait()
            cut_consuming(worker)
            await living

        assert told == [State.CONNECTING] * 3


class TestAnOpening:
    @of_one_that_opens
    async def test_ends_at_every_moment(self, make: Make, ending: Ending) -> None:
        """The moments begin with the first connection; before it there is nothing to lose."""
        await ends_at_every_moment(make, "first connection", "open", ending, sampled(ending))


class TestAVerification:
    @of_one_that_verifies
    async def test_ends_at_every_moment(
        self, make: Make, ending: Ending, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It opens a channel, asks and closes it, while the session consumes."""
        monkeypatch.setattr(service, "VERIFY_EVERY_SECONDS", 0)

        await ends_at_every_moment(make, "session", "verified", ending, sampled(ending))


class TestASettlement:
    @pytest.mark.parametrize("content", [planned("e-1"), b"broken"], ids=["ack", "dead letter"])
    @of_one_that_settles
    async def test_ends_at_every_moment(
        self, make: Make, queues: Queues, content: Message | bytes, ending: Ending
    ) -> None:
        """It widens the window, waits for the confirm of a dead letter, and acks."""

        async def make_with_a_message() -> Worker:
            # A message that was lost twice is a suspect, and the window stays narrow.
            await queues.replace([content])
            return await make()

        await ends_at_every_moment(
            make_with_a_message, "committed", "settled", ending, itertools.count()
        )


class TestAWorkerThatVerifiesContinuously:
    async def test_consumes_again_after_each_loss(self, node: RabbitMQNode, tmp_path: Path) -> None:
        """The link falls silent before each cut, sometimes for longer than the worker waits."""
        async with linked(node, tmp_path, "tests.verifying") as link:
            for number in range(1, CUTS + 1):
                tired = len(link.worker.said("topology_wrong")) + 1
                link.proxy.stall()
                if number % 2:
                    await link.worker.wait_for_log("topology_wrong", times=tired)
                else:
                    await turns(number)
                link.proxy.cut()
                link.proxy.flow()
                await link.worker.wait_for_log("connected", times=number + 1)
                await link.publish(1)
                await link.until_committed()
            ending = await link.end()

        ending.require_whole()
