"""What a publisher may put into a message to harm who reads it."""

import json
from pathlib import Path

import pytest

from tests.builders import body, planned, started
from tests.chaos.footprint import Footprint
from tests.cli.commands import run_command
from tests.database import change, rows
from tests.oracle import expected_rows
from tests.processes import StartWorker
from tests.queues import Queues

MEBIBYTE = 2**20
MAX_KIBIBYTES = 400 * 1024
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
        """Quotes, line breaks, markup and control sequences: in rows, log lines and lists."""
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
    async def test_cost_no_more_memory_than_the_prefetch_allows(
        self, queues: Queues, start_worker: StartWorker
    ) -> None:
        """What is too large is dead-lettered unread, whatever it is."""
        large = b"[" * MEBIBYTE + b"x"
        await queues.declare()
        await queues.publish([large] * 100)
        worker = await start_worker(prefetch=50, batch_size=50)
        await worker.wait_until_settled(100)

        assert worker.total("rejected") == 100
        assert Footprint.of(worker.pid).kibibytes < MAX_KIBIBYTES


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
        """The same models judge it that judged the messages; the live rows are left alone."""
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
