import json
from typing import Any

from tests.builders import planned, started
from tests.cli.commands import run_command
from tests.cli.conftest import Place
from tests.letters import headers, put
from worker.cli.dead_letters import LISTED

BROKEN = b'{"kind": "event_startd", "id": "m-1", "payload": {}}'
LONG_AGO = "2020-04-27T10:39:03.120000Z"
JUST_NOW = "2999-04-27T10:39:03.120000Z"


async def run(place: Place, *arguments: str) -> tuple[int, str, str]:
    """Run a command on the dead letters."""
    return await run_command("dead-letters", *arguments, folder=place.folder, **place.settings)


async def listed(place: Place, *options: str) -> list[dict[str, Any]]:
    """List the dead letters as JSON."""
    code, out, err = await run(place, "list", "--json", *options)
    assert code == 0, err
    found: list[dict[str, Any]] = json.loads(out)
    return found


async def filled(place: Place) -> None:
    """Put four dead letters of different reasons, kinds and ages into the queue."""
    await place.queues.declare()
    await put(place.queues, [planned("e-1", id="m-1")], headers=headers(at=LONG_AGO))
    await put(place.queues, [planned("e-2", id="m-2")], headers=headers(at=JUST_NOW))
    await put(place.queues, [started("e-3", id="m-3")], headers=headers("not_json", LONG_AGO))
    await put(place.queues, [b"\xff"], headers={}, message_id="amqp-4")


class TestDeadLetters:
    """Looking at dead letters leaves them where they are."""

    async def test_are_listed_with_their_reasons(self, place: Place) -> None:
        """Listing them twice prints the same, because nothing is removed."""
        worker = await place.consuming()
        await place.queues.publish([BROKEN, b"\xff\x1b[2J"])
        await worker.wait_until_settled(2)

        for _ in range(2):
            assert [(each["reason"], each["kind"]) for each in await listed(place)] == [
                ("unknown_kind", "event_startd"),
                ("not_json", None),
            ]
        _, table, _ = await run(place, "list")
        assert "No handler for kind 'event_startd'" in table

    async def test_are_shown_whole(self, place: Place) -> None:
        """All headers and the raw body are printed; bytes that are not text as hexadecimal."""
        worker = await place.consuming()
        await place.queues.publish([BROKEN], headers={"trace": "abc"})
        await place.queues.publish([b"\xff\x1b[2J"])
        await worker.wait_until_settled(2)

        _, first, _ = await run(place, "show", "1", "--json")
        _, same, _ = await run(place, "show", "m-1", "--json")
        _, second, _ = await run(place, "show", "2")
        code, _, err = await run(place, "show", "3")
        unknown_code, _, unknown = await run(place, "show", "m-404")

        assert json.loads(first)["body"] == BROKEN.decode()
        assert json.loads(first)["headers"] == {"trace": "abc"}
        assert json.loads(first)["routing_key"] == "chat-1"
        assert same == first
        assert b"\xff\x1b[2J".hex() in second
        assert (code, unknown_code) == (1, 1)
        assert "No dead letter has number 3; the queue has 2 dead letters." in err
        assert "No dead letter has the id 'm-404'" in unknown

    async def test_that_are_none_are_no_error(self, place: Place) -> None:
        """A sentence says that the queue is empty."""
        await place.queues.declare()

        code, out, _ = await run(place, "list")

        assert (code, out) == (0, "There are no dead letters.\n")

    async def test_are_selected_by_all_that_is_given(self, place: Place) -> None:
        """Reason, kind and age all count; a letter of unknown age is never old."""
        await filled(place)

        async def numbers(*options: str) -> list[int]:
            return [each["number"] for each in await listed(place, *options)]

        assert await numbers() == [1, 2, 3, 4]
        assert await numbers("--limit", "2") == [1, 2]
        assert await numbers("--reason", "unknown_kind") == [1, 2]
        assert await numbers("--reason", "unknown") == [4]
        assert await numbers("--kind", "event_started") == [3]
        assert await numbers("--older-than", "2h") == [1, 3]
        assert await numbers("--older-than", "3d", "--kind", "event_planned") == [1]
        _, none, _ = await run(place, "list", "--kind", "event_x")
        assert none == "No dead letter matches; the queue has 4 dead letters.\n"

    async def test_are_counted_in_groups(self, place: Place) -> None:
        """Each group has its oldest and newest rejection, and the largest group comes first."""
        await filled(place)

        by_reason = await listed(place, "--group-by", "reason")
        by_kind = await listed(place, "--group-by", "kind")
        _, table, _ = await run(place, "list", "--group-by", "kind")

        assert by_reason[0] == {
            "reason": "unknown_kind", "count": 2, "oldest": LONG_AGO, "newest": JUST_NOW,
        }  # fmt: skip
        assert [(each["reason"], each["count"]) for each in by_reason[1:]] == [
            ("not_json", 1),
            ("unknown", 1),
        ]
        assert by_reason[2]["oldest"] is None
        assert {each["kind"]: each["count"] for each in by_kind} == {
            "event_planned": 2, "event_started": 1, None: 1,
        }  # fmt: skip
        assert "event_planned" in table

    async def test_of_many_groups_are_cut_short(self, place: Place) -> None:
        """Publishers choose the kinds, so beyond a hundred the smallest groups are merged."""
        await place.queues.declare()
        kinds = [b'{"kind": "k-%d"}' % number for number in range(LISTED + 2)]
        await put(place.queues, [*kinds, kinds[-1]], headers=headers(at=LONG_AGO))

        groups = await listed(place, "--group-by", "kind")

        assert len(groups) == LISTED + 1
        assert groups[0] == {
            "kind": f"k-{LISTED + 1}", "count": 2, "oldest": LONG_AGO, "newest": LONG_AGO,
        }  # fmt: skip
        assert groups[-1] == {
            "kind": "(2 others)", "count": 2, "oldest": LONG_AGO, "newest": LONG_AGO,
        }  # fmt: skip

    async def test_do_not_steer_the_terminal(self, place: Place) -> None:
        """Control characters in a header, a reason, a kind or an id are escaped."""
        await place.queues.declare()
        body = b'{"kind": "\\u001b[2Jk\\u0000", "id": "\\u001b]0;t\\u0007"}'
        evil = headers("\x1b[31mreason\x00", trace="\x1b[2J", own_list=["\x1b[2J\x00"])
        await put(place.queues, [body], headers=evil, message_id="\x1b[2J\x00")

        outputs = [
            await run(place, "list"),
            await run(place, "list", "--group-by", "kind"),
            await run(place, "show", "1"),
            await run(place, "requeue", "--all", "--dry-run"),
            await run(place, "requeue", "--all", "--yes"),
        ]

        assert [code for code, _, _ in outputs] == [0] * 5
        for _, out, err in outputs:
            assert "\x1b" not in out + err
            assert "\x00" not in out + err
            assert "\\x1b" in out

    async def test_refuse_an_age_that_is_none(self, place: Place) -> None:
        """A mistyped age is an error and selects nothing."""
        code, _, err = await run(place, "list", "--older-than", "2 weeks")

        assert code == 2
        assert "2 weeks" in err
