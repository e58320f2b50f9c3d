import gzip
import json

import pytest

from tests.builders import body, planned, started
from tests.cli.commands import run_command
from tests.cli.conftest import Place
from tests.database import query, rows
from tests.oracle import expected_rows
from tests.unit.projecting import project

LIFE = [planned("e-1"), started("e-1")]
LINES = b"\n".join([*map(body, LIFE), b"", b"{broken"]) + b"\n"


class TestAFile:
    """A file is published line by line, unchanged."""

    async def test_is_published_and_counted(self, place: Place) -> None:
        """Empty lines are skipped, invalid ones are sent, and the broker's confirms are counted."""
        worker = await place.consuming()
        (place.folder / "m.ndjson.gz").write_bytes(gzip.compress(LINES))

        code, out, _ = await run_command(
            "publish", "m.ndjson.gz", folder=place.folder, **place.settings
        )
        await worker.wait_until_settled(3)

        assert (code, out) == (0, "The broker confirmed 3 messages.\n")
        assert rows(place.database) == expected_rows(LIFE)
        (letter,) = await place.queues.take_dead_letters()
        assert letter.body == b"{broken"

    async def test_may_be_standard_input(self, place: Place) -> None:
        """The name - means standard input; --json prints only the count."""
        worker = await place.consuming()

        code, out, _ = await run_command(
            "publish", "-", "--json", folder=place.folder, stdin=LINES, **place.settings
        )
        await worker.wait_until_settled(3)

        assert (code, json.loads(out)) == (0, {"confirmed": 3})

    async def test_may_hold_any_routing_key(self, place: Place) -> None:
        """A message whose chat id does not fit into a routing key is published all the same."""
        worker = await place.consuming()
        long, odd = (planned(e, chat_id=c) for e, c in (("e-1", "é" * 255), ("e-2", "c")))
        odd_body = body(odd).replace(b'"chat_id": "c"', rb'"chat_id": "\ud800"')
        lines = b"\n".join([body(long), odd_body])

        code, _, _ = await run_command(
            "publish", "-", folder=place.folder, stdin=lines, **place.settings
        )
        await worker.wait_until_settled(2)

        assert code == 0
        assert rows(place.database) == expected_rows([long])

    async def test_that_is_cut_short_says_how_far_it_came(self, place: Place) -> None:
        """What was confirmed before the damage is counted, and the exit code is 1."""
        await place.consuming()
        (place.folder / "m.ndjson.gz").write_bytes(gzip.compress(LINES)[:-12])

        code, _, err = await run_command(
            "publish", "m.ndjson.gz", folder=place.folder, **place.settings
        )

        assert code == 1
        assert "cannot be read to its end" in err

    async def test_that_is_not_there_is_a_wrong_call(self, place: Place) -> None:
        """The error comes before anything is published."""
        code, _, err = await run_command(
            "publish", "none.ndjson", folder=place.folder, **place.settings
        )

        assert code == 2
        assert "none.ndjson" in err


class TestOneByHand:
    """A single message is built from options."""

    async def test_is_checked_and_published(self, place: Place) -> None:
        """It gets an id and a time; its fields are JSON or text."""
        worker = await place.consuming()

        code, out, _ = await run_command(
            "publish", "--kind", "event_planned", "--event-id", "e-7", "--field", "chat_id=c-1",
            "--field", "kind=poll", "--field", 'props={"n": 1}',
            folder=place.folder, **place.settings,
        )  # fmt: skip
        await worker.wait_until_settled(1)

        assert code == 0
        assert "confirmed 1 message" in out
        assert rows(place.database)[0][:5] == ("e-7", "c-1", "poll", "planned", '{"n":1}')

    async def test_comes_after_all_that_is_projected(self, place: Place) -> None:
        """This holds whether or not the event's publisher sends sequences."""
        worker = await place.consuming()
        life = [planned("e-1"), started("e-1"), planned("e-2", sequence=0)]
        await place.queues.publish(life)
        await worker.wait_until_settled(3)

        for event_id in ("e-1", "e-2"):
            code, _, err = await run_command(
                "publish", "--kind", "event_cancelled", "--event-id", event_id,
                folder=place.folder, **place.settings,
            )  # fmt: skip
            assert (code, err) == (0, "")
        await worker.wait_until_settled(5)

        assert [row[3] for row in rows(place.database)] == ["cancelled", "cancelled"]
        numbers = query(place.database, "SELECT max(sequence) FROM messages GROUP BY event_id")
        assert numbers == [(life[1]["sequence"] + 1,), (0,)]

    @pytest.mark.parametrize(
        "arguments", [["--sequence", "0"], ["--sequence", "7", "--occurred-at", "1999-01-01T00:00"]]
    )
    async def test_that_comes_before_another_is_published_with_a_warning(
        self, place: Place, arguments: list[str]
    ) -> None:
        """The operator is told that it may have no effect, and where to look."""
        await place.queues.declare()
        await project(place.database, [planned("e-1", sequence=6), started("e-1", sequence=7)])

        code, out, err = await run_command(
            "publish", "--kind", "event_cancelled", "--event-id", "e-1", *arguments,
            folder=place.folder, **place.settings,
        )  # fmt: skip

        assert code == 0
        assert "confirmed 1 message" in out
        assert "may have no effect" in err
        assert "projection-worker show" in err

    async def test_without_a_database_needs_its_sequence(self, place: Place) -> None:
        """Nothing is sent until the operator has given its place."""
        await place.queues.declare()
        publish = ["publish", "--kind", "event_cancelled", "--event-id", "e-1"]

        code, _, err = await run_command(*publish, folder=place.folder, **place.settings)
        assert code == 1
        assert "--sequence" in err
        assert (await place.queues.depth()).ready == 0

        code, out, err = await run_command(
            *publish, "--sequence", "8", folder=place.folder, **place.settings
        )
        assert (code, err) == (0, "")
        assert "sequence 8" in out

    async def test_with_a_typing_error_is_refused(self, place: Place) -> None:
        """The reason is the worker's own, and nothing is sent."""
        await place.queues.declare()

        code, _, err = await run_command(
            "publish", "--kind", "event_startd", "--event-id", "e-7",
            folder=place.folder, **place.settings,
        )  # fmt: skip

        assert code == 1
        assert "event_started" in err
        assert (await place.queues.depth()).ready == 0

    async def test_and_a_file_exclude_each_other(self, place: Place) -> None:
        """Both together, or neither, are wrong usage."""
        for arguments in (("publish",), ("publish", "-", "--kind", "event_started")):
            code, _, err = await run_command(*arguments, folder=place.folder, **place.settings)
            assert code == 2
            assert "either FILE or --kind" in err


class TestABrokerThatRefuses:
    """No message is lost silently."""

    async def test_for_want_of_an_exchange_says_so(self, place: Place) -> None:
        """Before the worker's first start there is no exchange."""
        code, _, err = await run_command(
            "publish", "-", folder=place.folder, stdin=LINES, **place.settings
        )

        assert code == 1
        assert place.queues.exchange in err
        assert "Confirmed before: 0" in err
