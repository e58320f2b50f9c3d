import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from aio_pika.abc import AbstractIncomingMessage

from tests.builders import body, planned, started
from tests.database import rows
from tests.deadly import deadly
from tests.intolerant import POISON
from tests.oracle import expected_rows
from tests.processes import StartWorker, WorkerProcess, environment, worker_process
from tests.queues import DELIVERY_LIMIT, Queues
from tests.rabbitmq import RabbitMQNode
from tests.raw_amqp import raw_publisher
from tests.waiting import eventually
from worker.broker.claim import Claimant
from worker.broker.connection import BrokerAddress
from worker.broker.consumer import Reception
from worker.broker.session import Session, session
from worker.broker.topology import Topology
from worker.messages import receive
from worker.projections import load

DEADLY_EXIT = 66
LIMIT = 5
GOOD = [make(f"e-{number}") for number in range(40) for make in (planned, started)]
MICROSECONDS = struct.pack(">Q", 1_764_000_000_000_000)


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = b"\x01kF" + table(content)
    return content


StartModule = Callable[..., Awaitable[WorkerProcess]]
"""Starts a module instead of the worker, with settings as keywords."""


@pytest.fixture
async def start(queues: Queues, database: Path, tmp_path: Path) -> AsyncIterator[StartModule]:
    """Return a function that starts a modified worker."""
    async with AsyncExitStack() as stack:

        async def start(module: str, **settings: object) -> WorkerProcess:
            common = {**queues.settings, "database": database, "secrets_dir": tmp_path}
            of_this = environment(**common | {"delivery_limit": LIMIT} | settings)
            process = worker_process("run", settings=of_this, folder=tmp_path, module=module)
            return await stack.enter_async_context(process)

        yield start


class TestAMessageThatKillsTheProcess:
    async def test_ends_alone_as_a_dead_letter(
        self, queues: Queues, database: Path, start: StartModule, start_command: StartWorker
    ) -> None:
        """The other messages are projected once each, however many share its window."""
        bomb = deadly("e-20")
        await queues.declare(LIMIT)
        await queues.publish([*GOOD[:40], bomb, *GOOD[40:]])

        deaths = 0
        while deaths <= LIMIT:
            worker = await start("tests.deadly", prefetch=1000, batch_size=500)
            assert await worker.exit_code() == DEADLY_EXIT, worker.output
            deaths += 1
        await start("tests.deadly")
        letter = await queues.next_dead_letter()
        await eventually(lambda: rows(database) == expected_rows(GOOD))

        assert letter.body == body(bomb)
        assert letter.headers["x-first-death-reason"] == "delivery_limit"
        assert await queues.take_dead_letters() == []

    async def test_is_named_before_it_kills(self, queues: Queues, start: StartModule) -> None:
        """The last log line of a worker that keeps dying names the message."""
        await queues.declare(LIMIT)
        await queues.publish(GOOD, message_id="harmless")
        await queues.publish([deadly("e-1")], message_id="the-bomb")
        for _ in range(2):
            assert await (await start("tests.deadly")).exit_code() == DEADLY_EXIT

        worker = await start("tests.deadly")
        await worker.exit_code()

        last = worker.lines[-1]
        assert (last["event"], last["losses"]) == ("quarantined", 2)
        assert last["message_id"] == "the-bomb"


async def has_dead_letter(queues: Queues) -> bool:
    async with queues.channel() as channel:
        queue = await channel.declare_queue(queues.dead_letters, passive=True)
        return bool(queue.declaration_result.message_count)


class TestAMessageThatKillsTheConnection:
    async def test_ends_alone_as_a_dead_letter(
        self,
        queues: Queues,
        database: Path,
        start: StartModule,
        start_command: StartWorker,
    ) -> None:
        """No code of the worker sees the message, but the commands can show and discard it."""
        limit = 3
        await queues.declare(limit)
        await queues.publish(GOOD[:40])
        await queues.publish([b"{}"], headers={POISON: True})
        await queues.publish(GOOD[40:])

        await start("tests.intolerant", delivery_limit=limit)
        await eventually(lambda: has_dead_letter(queues))
        await eventually(lambda: rows(database) == expected_rows(GOOD))

        listed = await start_command("dead-letters", "list")
        assert await listed.exit_code() == 0
        assert "delivery_limit" in listed.output


class TestOddProperties:
    @pytest.mark.parametrize(
        ("headers", "timestamp"),
        [
            (b"", MICROSECONDS),
            (b"", struct.pack(">Q", 2**64 - 1)),
            (b"\x02\xff\xfeS" + table(b"v"), b""),
            (nested(900), b""),
            (b"\x01kA" + table(b"V" * 100_000), b""),
        ],
        ids=[
            "timestamp in microseconds",
            "timestamp beyond all years",
            "key not UTF-8",
            "nested 900 deep",
            "100,000 empty values",
        ],
    )
    async def test_harm_neither_their_message_nor_any_other(
        self,
        queues: Queues,
        database: Path,
        node: RabbitMQNode,
        start_worker: StartWorker,
        headers: bytes,
        timestamp: bytes,
    ) -> None:
        """The connection survives, and a message with a sound body is projected."""
        plan, odd = planned("e-0"), started("e-0")
        await queues.declare()
        async with raw_publisher(node.port) as raw:
            await raw.publish(queues.name, body(plan))
            await raw.publish(queues.name, body(odd), headers=headers, timestamp=timestamp)
            await raw.publish(queues.name, b"broken", headers=headers, timestamp=timestamp)
        await queues.publish([planned("e-1")])

        worker = await start_worker()
        await worker.wait_until_settled(4)

        assert [row[3] for row in rows(database)] == ["active", "planned"]
        assert worker.said("connection_lost") == []
        (letter,) = await queues.take_dead_letters()
        assert letter.body == b"broken"
        assert letter.headers["x-reason"] == "not_json"


@asynccontextmanager
async def another_session(queues: Queues) -> AsyncIterator[list[AbstractIncomingMessage]]:
    """Consume before this worker's session, without an ack; yield what is delivered."""
    taken: list[AbstractIncomingMessage] = []

    async def take(message: AbstractIncomingMessage) -> None:
        taken.append(message)

    async with queues.channel() as channel:
        queue = await channel.get_queue(queues.name)
        # A session begins with this priority; RabbitMQ 4 would let a higher one take over.
        await queue.consume(take, arguments={"x-priority": 1})
        yield taken


def opened(queues: Queues, database: Path) -> AbstractAsyncContextManager[Session]:
    """Open a session in this process; it consumes nothing until it is told to."""
    return session(
        BrokerAddress((queues.url,)),
        Topology(queues.exchange, queues.name, DELIVERY_LIMIT),
        Claimant(str(database), "a-file", is_new=True),
        Reception(partial(receive, load().wire, max_bytes=1024), prefetch=1000, batch_size=500),
        on_blocked=lambda _: None,
        on_settled_late=lambda _: None,
    )


class TestAWindow:
    async def test_is_one_message_until_one_is_committed(
        self, queues: Queues, database: Path, start_worker: StartWorker
    ) -> None:
        """A crash at the first message of a session costs no other message a delivery."""
        await queues.declare()
        await queues.publish(GOOD)
        worker = await start_worker()
        await worker.wait_until_settled(len(GOOD))

        sizes = [line["messages"] for line in worker.said("batch_committed")]

        assert sizes[0] == 1
        assert max(sizes) > 1

    async def test_is_one_message_after_a_wait_in_the_order_of_the_broker(
        self, queues: Queues, database: Path
    ) -> None:
        """Two sessions that begin at once see no rival, and then one waits behind the other."""
        await queues.declare()
        async with AsyncExitStack() as before, opened(queues, database) as waiting:
            taken = await before.enter_async_context(another_session(queues))
            await waiting.consume()
            await queues.publish(GOOD)
            await eventually(lambda: len(taken) == len(GOOD))

            await before.aclose()
            await anext(waiting.consumer)

            assert (await queues.depth()).ready == len(GOOD) - 1

    async def test_stays_open_where_nothing_was_lost(
        self, queues: Queues, start_worker: StartWorker
    ) -> None:
        """A clean restart raises no suspicion."""
        await queues.declare()
        await queues.publish(GOOD)
        worker = await start_worker()
        await worker.wait_until_settled(len(GOOD))

        assert worker.said("quarantined") == []
        assert (await queues.depth()).consumers == 1
