import asyncio
import json
import os
import pty
import sys
from hashlib import sha256

import pytest

from tests.builders import completed, planned, started
from tests.cli.conftest import Place
from tests.cli.test_dead_letters import filled, listed, run
from tests.database import rows
from tests.letters import headers, put
from tests.oracle import expected_rows
from tests.processes import environment
from tests.unit.projecting import project
from tests.waiting import patiently


async def answered(place: Place, answer: str, *arguments: str) -> int | None:
    """Run a command on a terminal, and type an answer."""
    terminal, inner = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker", "dead-letters", *arguments,
            cwd=place.folder, env=environment(**place.settings),
            stdin=inner, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        os.write(terminal, answer.encode() + b"\n")
        try:
            async with patiently():
                return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    finally:
        os.close(terminal)
        os.close(inner)


async def ids(place: Place) -> list[str]:
    """Return the ids of the remaining dead letters."""
    return [each["id"] for each in await listed(place)]


@pytest.mark.parametrize("order", ["requeue", "discard"])
class TestAnOrder:
    """`requeue` and `discard` follow the same rules."""

    async def test_without_a_selection_is_refused(self, place: Place, order: str) -> None:
        """No option does not mean everything, and --all excludes filters."""
        for options in ([], ["--limit", "3"], ["--all", "--kind", "k"]):
            code, _, err = await run(place, order, "--yes", *options)
            assert code == 2
            assert "--all" in err

    async def test_without_a_terminal_or_yes_is_refused(self, place: Place, order: str) -> None:
        """It says how many letters are selected, and changes nothing."""
        await filled(place)

        code, _, err = await run(place, order, "--reason", "unknown_kind")

        assert code == 2
        assert "2 of 4 dead letters will be" in err
        assert "--yes" in err
        assert len(await listed(place)) == 4

    async def test_asks_on_a_terminal(self, place: Place, order: str) -> None:
        """No changes nothing, and yes carries the order out."""
        await filled(place)

        assert await answered(place, "n", order, "--id", "m-1") == 1
        assert await ids(place) == ["m-1", "m-2", "m-3", "amqp-4"]
        assert await answered(place, "y", order, "--id", "m-1") == 0
        assert await ids(place) == ["m-2", "m-3", "amqp-4"]

    async def test_about_nothing_asks_nothing(self, place: Place, order: str) -> None:
        """If no dead letter matches, the command says so and exits with 0."""
        await filled(place)

        code, out, _ = await run(place, order, "--id", "m-404")

        said = "No dead letter matches; the queue has 4 dead letters.\n"
        assert (code, out) == (0, said)
        assert (await run(place, order, "--id", "m-404", "--yes"))[:2] == (0, said)

    async def test_takes_the_selected_ones_alone(self, place: Place, order: str) -> None:
        """It takes the oldest ones up to the limit; the others keep their order."""
        await filled(place)

        code, out, _ = await run(place, order, "--older-than", "1h", "--limit", "1", "--yes")

        assert code == 0
        assert "m-1  (unknown_kind, event_planned)" in out
        assert "1 of 4 dead letters" in out
        assert await ids(place) == ["m-2", "m-3", "amqp-4"]

    async def test_gives_json(self, place: Place, order: str) -> None:
        """It prints one document with the counts and each letter."""
        await filled(place)

        _, out, _ = await run(place, order, "--all", "--yes", "--json")

        told = json.loads(out)
        assert (told.get("requeued", told.get("discarded")), told["of"]) == (4, 4)
        assert [each["id"] for each in told["letters"]] == ["m-1", "m-2", "m-3", "amqp-4"]


class TestRequeue:
    async def test_applies_what_was_rejected(self, place: Place) -> None:
        """Once the cause is corrected, the rows are as if nothing had happened."""
        worker = await place.consuming()
        life = [planned("e-1"), started("e-1")]
        await put(place.queues, life)

        code, out, _ = await run(place, "requeue", "--reason", "unknown_kind", "--yes")
        await worker.wait_until_settled(2)

        assert (code, out.splitlines()[-1]) == (0, "2 of 2 dead letters requeued.")
        assert rows(place.database) == expected_rows(life)


class TestDryRun:
    async def test_shows_the_row_before_and_after(self, place: Place) -> None:
        """It shows what would happen to each letter by itself, and changes nothing."""
        known = [planned("e-1", sequence=1), completed("e-1", sequence=9, id="m-done")]
        await project(place.database, known)
        await place.queues.declare()
        await put(
            place.queues,
            [
                planned("e-1", sequence=2, id="m-late"),
                completed("e-1", sequence=9, id="m-done") | known[1],
                started("e-2", id="m-orphan"),
                planned("e-3", id="m-new"),
                b"broken",
            ],
        )
        before = sha256(place.database.read_bytes()).digest()

        code, out, err = await run(place, "requeue", "--all", "--dry-run", "--json")

        assert code == 0, err
        told = json.loads(out)
        outcomes = [each["outcome"] for each in told]
        assert outcomes == ["late", "duplicate", "orphan", "applied", "rejected"]
        assert told[0]["before"]["events"]["status"] == "completed"
        assert told[3]["before"] == {"events": None}
        assert told[3]["after"]["events"]["status"] == "planned"
        assert told[4]["would_be"]["reason"] == "not_json"
        assert sha256(place.database.read_bytes()).digest() == before
        assert len(await listed(place)) == 5

    async def test_needs_no_database(self, place: Place) -> None:
        """Before the first start no event has a row, and a dry run creates no database."""
        await place.queues.declare()
        await put(place.queues, [planned("e-1", id="m-1")])
        await put(place.queues, [b"2"], headers=headers(x_requeue_count=3), message_id="often")

        code, out, _ = await run(place, "requeue", "--all", "--dry-run")

        assert code == 0
        assert "m-1  (unknown_kind, event_planned): applied" in out
        assert "events.status" in out
        assert "often  (unknown_kind, no kind): skipped" in out
        assert "1 applied, 1 skipped. Nothing was changed." in out
        assert not place.database.exists()
