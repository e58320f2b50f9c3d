import json
from pathlib import Path
from typing import Any

from tests.builders import Message, completed, planned, reverted, started
from tests.cli.commands import run_command
from tests.database import change
from tests.unit.projecting import project

LIFE = [
    planned("e-1", payload={"props": {"text": "\x1b[2J[bold]hi"}}, sequence=1),
    completed("e-1", sequence=3),
    started("e-1", sequence=2),
    completed("e-1", sequence=4),
]


async def prepared(folder: Path, *more: Message) -> dict[str, Any]:
    """Project the messages of one event, one by one; return the settings for the file."""
    database = folder / "projection.db"
    await project(database, *([each] for each in [*LIFE, *more]))
    return {"database": database}


class TestShow:
    """`show` prints an event's row, and what each of its messages did."""

    async def test_marks_every_message(self, tmp_path: Path) -> None:
        """In order of position, each is applied, without effect, or late."""
        settings = await prepared(tmp_path)

        code, out, _ = await run_command("show", "e-1", "--json", folder=tmp_path, **settings)

        shown = json.loads(out)
        assert code == 0
        assert shown["row"]["status"] == "completed"
        assert [(step["sequence"], step["mark"]) for step in shown["history"]] == [
            (1, "applied"),
            (2, "applied, late"),
            (3, "applied"),
            (4, "without effect"),
        ]
        assert [step["status"] for step in shown["history"]][:2] == ["planned", "active"]

    async def test_is_limited_to_the_last_messages(self, tmp_path: Path) -> None:
        """The last messages explain the row; the others are counted, and printed with --all."""
        settings = await prepared(tmp_path, *(reverted("e-1", "active") for _ in range(110)))

        shown = {}
        for options in ((), ("--limit", "2"), ("--all",)):
            _, out, _ = await run_command(
                "show", "e-1", "--json", *options, folder=tmp_path, **settings
            )
            shown[options] = json.loads(out)
        _, text, _ = await run_command("show", "e-1", "--limit", "3", folder=tmp_path, **settings)

        whole = shown["--all",]["history"]
        assert [each["messages"] for each in shown.values()] == [114] * 3
        assert len(whole) == 114
        assert shown[()]["history"] == whole[-100:]
        assert shown["--limit", "2"]["history"] == whole[-2:]
        assert "The last 3 of 114 messages" in text

    async def test_is_readable_without_steering_the_terminal(self, tmp_path: Path) -> None:
        """A publisher's control characters are escaped, and its markup is printed as it is."""
        settings = await prepared(tmp_path)

        code, out, _ = await run_command("show", "e-1", folder=tmp_path, **settings)

        assert code == 0
        assert "without effect" in out
        assert "\x1b" not in out
        assert "[bold]hi" in out

    async def test_goes_on_behind_a_message_that_fails(self, tmp_path: Path) -> None:
        """A message that the present handlers cannot read is marked, and the others are shown."""
        settings = await prepared(tmp_path)
        change(tmp_path / "projection.db", "UPDATE log SET body = '{}' WHERE sequence = 2")

        code, out, _ = await run_command("show", "e-1", "--json", folder=tmp_path, **settings)

        marks = [step["mark"] for step in json.loads(out)["history"]]
        assert code == 0
        assert marks[1].startswith("fails (ValidationError")
        assert (marks[0], marks[2]) == ("applied", "applied")

    async def test_of_an_orphan_says_why_there_is_no_row(self, tmp_path: Path) -> None:
        """An event that was never planned has a history but no row."""
        settings = await prepared(tmp_path, started("e-9"))

        code, out, _ = await run_command("show", "e-9", folder=tmp_path, **settings)

        assert code == 0
        assert "no message has planned it" in out
        assert "event_started" in out

    async def test_of_an_unknown_event_fails(self, tmp_path: Path) -> None:
        """If the log has nothing about the event, the exit code is 1."""
        settings = await prepared(tmp_path)

        code, out, err = await run_command("show", "e-404", folder=tmp_path, **settings)

        assert (code, out) == (1, "")
        assert "'e-404'" in err

    async def test_without_a_database_fails(self, tmp_path: Path) -> None:
        """A command that only reads creates no file."""
        database = tmp_path / "none.db"

        code, _, err = await run_command("show", "e-1", folder=tmp_path, database=database)

        assert code == 1
        assert "WORKER_DATABASE" in err
        assert not database.exists()


class TestList:
    """`list` prints the events of a chat."""

    async def test_gives_what_is_planned_or_going_on(self, tmp_path: Path) -> None:
        """They are in the order of planning; --status selects one status."""
        more = [planned("e-3"), planned("e-2"), started("e-2"), planned("x", chat_id="chat-2")]
        settings = await prepared(tmp_path, *more)

        _, active, _ = await run_command("list", "chat-1", "--json", folder=tmp_path, **settings)
        _, done, _ = await run_command(
            "list", "chat-1", "--status", "completed", "--json", folder=tmp_path, **settings
        )

        assert [event["event_id"] for event in json.loads(active)] == ["e-3", "e-2"]
        assert [event["event_id"] for event in json.loads(done)] == ["e-1"]

    async def test_says_so_if_there_is_none(self, tmp_path: Path) -> None:
        """An empty chat is not an error."""
        settings = await prepared(tmp_path, reverted("e-1", "cancelled"))

        code, out, _ = await run_command("list", "chat-1", folder=tmp_path, **settings)

        assert (code, out) == (0, "Chat chat-1 has no planned or active events.\n")

    async def test_refuses_a_status_that_is_none(self, tmp_path: Path) -> None:
        """A mistyped status is an error that lists the valid ones."""
        settings = await prepared(tmp_path)

        code, _, err = await run_command(
            "list", "chat-1", "--status", "done", folder=tmp_path, **settings
        )

        assert code == 2
        assert "cancelled" in err
