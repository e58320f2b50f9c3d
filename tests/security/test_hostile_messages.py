"""What a publisher may put into a message to harm whoever reads it."""

import json
from functools import partial
from pathlib import Path

import pytest

from tests.builders import body, planned, started
from tests.chaos.footprint import Footprint
from tests.cli.commands import run_command
from tests.database import change, locked, rows
from tests.oracle import expected_rows
from tests.processes import StartWorker, WorkerProcess, environment, worker_process
from tests.queues import Queues
from tests.waiting import eventually

MEBIBYTE = 2**20
# A worker takes 58 MiB before the first message, and may hold another 64 of messages.
MAX_KIBIBYTES = 160 * 1024
LIMIT = 3
NASTY = [
    "'; DROP TABLE events; --",
    '"; DELETE FROM log; --',
    "%_[]^",
    '\n{"level": "error", "event": "forged"}',
    "\x1b[2J\x1b]0;owned\x07",
    "\u202eevil",
    "[bold red]markup[/]",
]


class TestText:
    async def test_of_a_publisher_is_data_everywhere(
        self, queues: Queues, database: Path, tmp_path: Path, start_worker: StartWorker
    ) -> None:
        """Quotes, line breaks, markup and control sequences do no harm in rows, logs or lists."""
        messages = [planned(f"e-{number}{text}", chat_id=text) for number, text in enumerate(NASTY)]
        worker = await start_worker()
        await worker.wait_for_log("connected")
        wrong = [json.dumps({**message, "kind": text}).encode()
                 for message, text in zip(messages, NASTY, strict=True)]  # fmt: skip
        await queues.publish([*messages, *wrong])
        await worker.wait_until_settled(2 * len(NASTY))
        await worker.wait_for_log("dead_lettered", times=len(NASTY))

        assert rows(database) == expected_rows(messages)
        assert worker.said("forged") == []
        assert len(worker.said("dead_lettered")) == len(NASTY)
        assert "\x1b" not in worker.output
        for text in NASTY:
            code, out, _ = await run_command("list", text, folder=tmp_path, database=database)
            assert code == 0
            assert len(out.splitlines()) == 2
            assert "\x1b" not in out


class TestLargeMessages:
    async def test_wait_with_the_broker_while_the_database_is_locked(
        self, queues: Queues, database: Path, start_worker: StartWorker
    ) -> None:
        """The prefetch is 2,000, but the worker reads only as much as it has room for."""
        first, *large = (planned(f"e-{n}", payload={"note": "x" * 1_000_000}) for n in range(151))
        worker = await start_worker(prefetch=2_000)
        await worker.wait_for_log("connected")
        await queues.publish([first])
        await worker.wait_until_settled(1)
        with locked(database):
            await queues.publish(large)
            await worker.wait_for_log("holding")
            # All of them are on their way.
            await eventually(partial(is_empty, queues))
        await worker.wait_until_settled(1 + len(large))

        assert Footprint.of(worker.pid).peak_kibibytes < MAX_KIBIBYTES
        assert rows(database) == expected_rows([first, *large])
        assert len(worker.said("connected")) == 1

    async def test_for_which_there_is_no_room_come_again(
        self, queues: Queues, database: Path, tmp_path: Path
    ) -> None:
        """They are requeued in the same session, but never up to the broker's delivery limit."""
        first, *others = (planned(f"e-{n}", payload={"note": "x" * 1_000}) for n in range(1_001))
        settings = environment(
            **queues.settings, database=database, secrets_dir=tmp_path, delivery_limit=LIMIT
        )
        cramped = worker_process("run", settings=settings, folder=tmp_path, module="tests.cramped")
        async with cramped as worker:
            await worker.wait_for_log("connected")
            await queues.publish([first])
            await worker.wait_until_settled(1)
            with locked(database):
                await queues.publish(others)
                await worker.wait_for_log("holding")
                await eventually(partial(is_empty, queues))
            for _ in range(2 * LIMIT):
                await worker.wait_for_log("resumed", times=len(worker.said("holding")))
                holds = len(worker.said("holding"))
                with locked(database):
                    await eventually(partial(has_held, worker, holds + 1, 1_001))
            await worker.wait_until_settled(1_001)

            assert rows(database) == expected_rows([first, *others])
            assert worker.total("applied") == 1_001
            assert worker.total("redelivered") > 0
            assert await queues.take_dead_letters() == []
            assert len(worker.said("connected")) == 1

    async def test_are_dead_lettered_whole_within_the_same_bound(
        self, queues: Queues, start_worker: StartWorker
    ) -> None:
        """A message that is too large is not parsed, whatever it contains."""
        large = b"[" * MEBIBYTE + b"x"
        await queues.declare()
        await queues.publish([large] * 150)
        worker = await start_worker()
        await worker.wait_until_settled(150)
        letters = await queues.take_dead_letters()

        assert worker.total("rejected") == 150
        assert {letter.body for letter in letters} == {large}
        assert Footprint.of(worker.pid).peak_kibibytes < MAX_KIBIBYTES


def has_held(worker: WorkerProcess, holds: int, messages: int) -> bool:
    """Return whether it has held so often, or has settled all messages and so cannot."""
    return len(worker.said("holding")) == holds or worker.settled == messages


async def is_empty(queues: Queues) -> bool:
    return (await queues.depth()).ready == 0


class TestALogThatWasTamperedWith:
    @pytest.mark.parametrize("command", [["rebuild"], ["rebuild", "--verify"]], ids=" ".join)
    async def test_is_not_folded(
        self,
        queues: Queues,
        database: Path,
        tmp_path: Path,
        start_worker: StartWorker,
        command: list[str],
    ) -> None:
        """The models that judged the messages judge the log, too; the live rows are left alone."""
        history = [planned("e-1"), started("e-1")]
        worker = await start_worker()
        await worker.wait_for_log("connected")
        await queues.publish(history)
        await worker.wait_until_settled(2)
        worker.terminate()
        await worker.exit_code()
        forged = body({**history[1], "payload": {"event_id": "e-1", "started_at": "never"}})
        change(database, f"UPDATE log SET body = '{forged.decode()}' WHERE kind = 'event_started'")

        code, _, err = await run_command(*command, folder=tmp_path, database=database)

        assert code == 1
        assert "'e-1'" in err
        assert rows(database) == expected_rows(history)
