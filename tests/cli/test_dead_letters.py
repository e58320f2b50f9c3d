import json

from tests.cli.commands import run_command
from tests.cli.conftest import Place

BROKEN = b'{"kind": "event_startd", "id": "m-1", "payload": {}}'


class TestDeadLetters:
    """Looked at, and left where they are."""

    async def test_are_listed_with_their_reasons(self, place: Place) -> None:
        """Twice the same, because looking takes nothing away."""
        worker = await place.consuming()
        await place.queues.publish([BROKEN, b"\xff\x1b[2J"])
        await worker.wait_until_settled(2)

        for _ in range(2):
            code, out, _ = await run_command(
                "dead-letters", "list", "--json", folder=place.folder, **place.settings
            )
            assert code == 0
            assert [(each["reason"], each["kind"]) for each in json.loads(out)] == [
                ("unknown_kind", "event_startd"),
                ("not_json", None),
            ]
        _, table, _ = await run_command(
            "dead-letters", "list", folder=place.folder, **place.settings
        )
        assert "No handler for kind 'event_startd'" in table

    async def test_are_shown_whole(self, place: Place) -> None:
        """All headers and the raw body; bytes that are no text as hexadecimal digits."""
        worker = await place.consuming()
        await place.queues.publish([BROKEN], headers={"trace": "abc"})
        await place.queues.publish([b"\xff\x1b[2J"])
        await worker.wait_until_settled(2)

        _, first, _ = await run_command(
            "dead-letters", "show", "1", "--json", folder=place.folder, **place.settings
        )
        _, second, _ = await run_command(
            "dead-letters", "show", "2", folder=place.folder, **place.settings
        )
        code, _, err = await run_command(
            "dead-letters", "show", "3", folder=place.folder, **place.settings
        )

        assert json.loads(first)["body"] == BROKEN.decode()
        assert json.loads(first)["headers"] == {"trace": "abc"}
        assert b"\xff\x1b[2J".hex() in second
        assert code == 1
        assert "only 2" in err

    async def test_that_are_none_are_no_error(self, place: Place) -> None:
        """An empty queue is said in a sentence."""
        await place.queues.declare()

        code, out, _ = await run_command(
            "dead-letters", "list", folder=place.folder, **place.settings
        )

        assert (code, out) == (0, "There are no dead letters.\n")
