"""One queue, one file: a worker with another file is refused before it changes anything."""

import asyncio
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from shutil import move

import pytest
from aio_pika import ExchangeType
from aio_pika.exceptions import ChannelPreconditionFailed

from tests.builders import planned, started
from tests.database import count_log, query, rows
from tests.health import asking, until_not_ready, until_ready
from tests.oracle import expected_rows
from tests.processes import Line, StartWorker, WorkerProcess
from tests.queues import Queues, queues_on
from tests.rabbitmq import RabbitMQNode
from tests.waiting import LISTING_SECONDS, eventually
from worker.broker.claim import exchange_of

# One message for all tests, because each new one would have another time.
PLAN = planned("e-1")
# The library allows 127 characters for an exchange, and that of dead letters adds 13.
LONGEST_NAME = 114
SOMEBODY = "0123456789abcdef0123456789abcdef"


def identity(database: Path) -> str:
    """Return the identity of a database file."""
    return str(query(database, "SELECT id FROM file")[0][0])


async def declare_claim(queues: Queues, file_id: str) -> None:
    """Claim the queue as the worker of another file does."""
    async with queues.channel() as channel:
        await channel.declare_exchange(
            exchange_of(queues.name), ExchangeType.FANOUT, durable=True, internal=True,
            arguments={"alternate-exchange": f"{exchange_of(queues.name)}.{file_id}"},
        )  # fmt: skip


async def take_claim(queues: Queues, file_id: str) -> None:
    """Claim a queue of another file, whose worker may claim it again at any moment."""

    async def is_taken() -> bool:
        async with queues.channel() as channel:
            await channel.exchange_delete(exchange_of(queues.name))
        return await belongs_to(queues, file_id)

    await eventually(is_taken)


async def belongs_to(queues: Queues, file_id: str) -> bool:
    """Return whether the queue belongs to this file; it must belong to one."""
    try:
        await declare_claim(queues, file_id)
    except ChannelPreconditionFailed:
        return False
    return True


async def refusal(worker: WorkerProcess) -> Line:
    """Wait for a worker that may not start, and return the line that says why."""
    assert await worker.exit_code() == 1
    (line,) = worker.said("failed", level="error")
    assert worker.said("connected") == worker.said("standing_by") == []
    return line


async def end(worker: WorkerProcess) -> None:
    worker.terminate()
    assert await worker.exit_code() == 0


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return the path of a database file that is not the first worker's."""
    return tmp_path / "other.db"


@pytest.fixture
async def first(queues: Queues, start_worker: StartWorker) -> WorkerProcess:
    """Return a worker that has projected a message."""
    worker = await start_worker()
    await worker.wait_for_log("connected")
    await queues.publish([PLAN])
    await worker.wait_until_settled(1)
    return worker


class TestASecondFile:
    async def test_is_refused_beside_the_first(
        self,
        queues: Queues,
        database: Path,
        other: Path,
        first: WorkerProcess,
        start_worker: StartWorker,
    ) -> None:
        """One error names the queue, both files and the fix; the first worker goes on."""
        line = await refusal(await start_worker(database=other))
        await queues.publish([planned("e-2")])
        await first.wait_until_settled(2)

        for name in (queues.name, str(other), identity(other), identity(database)):
            assert name in line["reason"]
        assert "WORKER_DATABASE" in line["hint"]
        assert "topology release" in line["hint"]
        assert count_log(other) == 0

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
    async def test_is_refused_when_the_first_has_ended(
        self,
        queues: Queues,
        other: Path,
        first: WorkerProcess,
        start_worker: StartWorker,
        number: signal.Signals,
    ) -> None:
        """Messages that arrive then wait for the first file."""
        first.send(number)
        await first.exit_code()
        await queues.publish([planned("e-later")])

        await refusal(await start_worker(database=other))

        assert await queues.left() == 1
        following = await start_worker()
        await following.wait_until_settled(1)

    async def test_is_refused_instead_of_the_first(
        self, database: Path, first: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """A file that was deleted and created again is another file."""
        await end(first)
        before = identity(database)
        move(database, database.with_name("gone.db"))

        line = await refusal(await start_worker())

        assert before in line["reason"]
        assert identity(database) != before

    async def test_started_at_the_same_moment_is_refused(
        self, queues: Queues, database: Path, other: Path, start_worker: StartWorker
    ) -> None:
        """On a new broker, exactly one of two files gets the queue."""
        both = await asyncio.gather(start_worker(), start_worker(database=other))

        def loser() -> WorkerProcess | None:
            return next((each for each in both if each.said("failed")), None)

        lost = await eventually(loser)
        (won,) = (each for each in both if each is not lost)
        await refusal(lost)
        await won.wait_for_log("connected")
        await queues.publish([planned("e-1")])
        await won.wait_until_settled(1)

        assert sorted([count_log(database), count_log(other)]) == [0, 1]

    async def test_changes_nothing_on_the_broker(
        self,
        queues: Queues,
        other: Path,
        node: RabbitMQNode,
        first: WorkerProcess,
        start_worker: StartWorker,
    ) -> None:
        """It neither creates an exchange nor binds the queue to another one."""
        async with queues.channel() as channel:
            elsewhere = await channel.declare_exchange(f"{queues.exchange}-2", ExchangeType.TOPIC)
            before = await node.ctl("list_bindings", "source_name", "destination_name")

            await refusal(await start_worker(database=other, exchange=elsewhere.name))
            await refusal(await start_worker(database=other, exchange=f"{queues.exchange}-3"))

            assert await node.ctl("list_bindings", "source_name", "destination_name") == before
            assert f"{queues.exchange}-3" not in await node.ctl("list_exchanges", "name")
            await elsewhere.delete()

    async def test_is_refused_by_a_queue_with_the_longest_name(
        self, broker_url: str, other: Path, start_worker: StartWorker
    ) -> None:
        """The broker's reply has no room for the identity, but the worker is refused anyway."""
        async with queues_on(broker_url) as queues:
            queues.name = queues.name.ljust(LONGEST_NAME, "x")
            queues.dead_letters = f"{queues.name}.dead-letters"
            first = await start_worker(**queues.settings)
            await first.wait_for_log("connected")

            line = await refusal(await start_worker(**queues.settings, database=other))

            assert queues.name in line["reason"]
            assert "identity unknown" in line["reason"]


class TestTheSameFile:
    async def test_as_a_restored_backup_is_accepted(
        self, queues: Queues, database: Path, first: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """A backup has the identity of the file that it was copied from."""
        backup = database.with_name("backup.db")
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(backup)) as copy:
            source.backup(copy)
        await end(first)
        move(backup, database)

        following = await start_worker()
        await following.wait_for_log("connected")
        await queues.publish([start := started("e-1")])
        await following.wait_until_settled(1)

        assert rows(database) == expected_rows([PLAN, start])

    async def test_of_an_installation_without_a_claim_gets_the_queue(
        self, queues: Queues, database: Path, first: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """The first worker that starts claims the queue, as after an upgrade."""
        await end(first)
        async with queues.channel() as channel:
            await channel.exchange_delete(exchange_of(queues.name))

        following = await start_worker()
        await following.wait_for_log("connected")

        assert await belongs_to(queues, identity(database))

    async def test_may_have_another_queue_too(
        self,
        broker_url: str,
        queues: Queues,
        database: Path,
        first: WorkerProcess,
        start_worker: StartWorker,
    ) -> None:
        """After a move to another queue name, both queues belong to the file and to no other."""
        await end(first)
        async with queues_on(broker_url) as new:
            await new.declare()
            await new.publish([start := started("e-1")])

            following = await start_worker(**new.settings)
            await following.wait_until_settled(1)

            assert await belongs_to(queues, identity(database))
            assert await belongs_to(new, identity(database))
            assert rows(database) == expected_rows([PLAN, start])

    async def test_claims_no_queue_that_is_not_there(
        self, queues: Queues, node: RabbitMQNode, first: WorkerProcess, start_worker: StartWorker
    ) -> None:
        """A misspelt queue name leaves nothing behind on the broker."""
        await end(first)

        line = await refusal(await start_worker(queue=f"{queues.name}-typo"))

        assert "is missing on the broker" in line["reason"]
        assert "typo" not in await node.ctl("list_exchanges", "name")


class TestAClaimWhileTheWorkerRuns:
    async def test_that_another_file_takes_ends_the_consuming(
        self, queues: Queues, database: Path, node: RabbitMQNode, first: WorkerProcess
    ) -> None:
        """Within seconds the worker is not ready; it consumes nothing until it has the claim."""
        ask = asking(first)
        await take_claim(queues, SOMEBODY)

        line = await first.wait_for_log("connection_refused")
        assert SOMEBODY in await until_not_ready(ask)
        await queues.publish([planned("e-2")])
        await first.wait_for_log("connection_failed")

        assert SOMEBODY in line["reason"]
        assert (await queues.left(), count_log(database)) == (1, 1)
        async with queues.channel() as channel:
            await channel.exchange_delete(exchange_of(queues.name))
        await first.wait_until_settled(2)
        await until_ready(ask)

    async def test_that_somebody_deletes_is_made_again(
        self, queues: Queues, database: Path, node: RabbitMQNode, first: WorkerProcess
    ) -> None:
        """No other file can take the queue meanwhile."""
        async with queues.channel() as channel:
            await channel.exchange_delete(exchange_of(queues.name))

        async def is_there() -> bool:
            return exchange_of(queues.name) in await node.ctl("list_exchanges", "name")

        await eventually(is_there, every=LISTING_SECONDS)
        assert await belongs_to(queues, identity(database))
        assert len(first.said("connected")) == 1

    async def test_that_is_another_kind_of_exchange_ends_the_start(
        self, queues: Queues, start_worker: StartWorker
    ) -> None:
        """The worker neither uses nor deletes that exchange."""
        async with queues.channel() as channel:
            await channel.declare_exchange(exchange_of(queues.name), ExchangeType.TOPIC)

        line = await refusal(await start_worker())

        assert exchange_of(queues.name) in line["reason"]
        assert "WORKER_QUEUE" in line["hint"]


class TestARelease:
    async def test_lets_another_file_have_the_queue(
        self,
        queues: Queues,
        database: Path,
        other: Path,
        first: WorkerProcess,
        start_worker: StartWorker,
        start_command: StartWorker,
    ) -> None:
        """The next worker claims it for its own file, and then the old file is refused."""
        await end(first)
        released = await start_command("topology", "release", "--yes")
        assert await released.exit_code() == 0, released.output

        second = await start_worker(database=other)
        await second.wait_for_log("connected")
        await queues.publish([planned("e-2")])
        await second.wait_until_settled(1)

        assert identity(other) in (await refusal(await start_worker()))["reason"]
        assert (count_log(database), count_log(other)) == (1, 1)

    async def test_is_refused_while_a_worker_consumes(
        self, queues: Queues, database: Path, first: WorkerProcess, start_command: StartWorker
    ) -> None:
        """It would go on writing to the old file."""
        command = await start_command("topology", "release", "--yes")

        assert await command.exit_code() == 1
        assert "stop the worker first" in command.output
        assert await belongs_to(queues, identity(database))
