import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders import Message, cancelled, completed, expired, planned, reverted, started
from tests.unit.projecting import project, rows
from worker.projections.events import (
    IN_STATUS,
    ONGOING,
    Status,
    get_event,
    list_active_events,
    list_events_in_status,
)
from worker.reader import Reader

STATUSES: tuple[Status, ...] = ("planned", "active", "completed", "cancelled", "expired")
ENDED = ("completed", "cancelled", "expired")
PLANNED_AT = "2026-04-27T10:00:00.000000Z"
MOVED_AT = "2026-04-27T10:00:01.000000Z"
CHANGED_AT = "2026-04-27T10:00:02.000000Z"
STARTED_AT, COMPLETED_AT = "2026-04-27T11:00:00.000000Z", "2026-04-27T12:00:00.000000Z"

# The message, and the status after it from each status; None is "as it was". DESIGN.md's table.
KINDS: dict[str, tuple[Message, dict[str, str | None]]] = {
    "planned": (planned("e"), dict.fromkeys(STATUSES)),
    "started": (
        started("e"),
        {"planned": "active", "active": "active"} | dict.fromkeys(ENDED),
    ),
    "completed": (
        completed("e"),
        {"planned": "completed", "active": "completed"} | dict.fromkeys(ENDED),
    ),
    "cancelled": (
        cancelled("e"),
        {"planned": "cancelled", "active": "cancelled"} | dict.fromkeys(ENDED),
    ),
    "expired": (
        expired("e"),
        {"planned": "expired", "active": "expired"} | dict.fromkeys(ENDED),
    ),
    **{
        f"reverted to {prior}": (reverted("e", prior), dict.fromkeys(STATUSES, prior))
        for prior in STATUSES
    },
}
CASES = [(name, status) for name in KINDS for status in STATUSES]


def row_in(status: str) -> list[Message]:
    """Return a history that ends in a status without changing the row's other times."""
    first = planned("e", payload={"props": {"a": 1}}, sequence=1, occurred_at=PLANNED_AT)
    return [first, reverted("e", status, sequence=2, occurred_at=MOVED_AT)]


def row(**changed: Any) -> dict[str, Any]:
    whole = {
        "event_id": "e",
        "chat_id": "chat-1",
        "kind": "reminder",
        "status": "planned",
        "props": {"a": 1},
        "planned_for": None,
        "started_at": None,
        "completed_at": None,
        "created_at": PLANNED_AT,
        "updated_at": MOVED_AT,
    }
    return whole | changed


async def event(path: Path, event_id: str = "e") -> dict[str, Any] | None:
    async with Reader(path) as reader:
        return await get_event(reader, event_id)


class TestKinds:
    @pytest.mark.parametrize(("name", "status"), CASES)
    async def test_do_what_the_table_says(self, tmp_path: Path, name: str, status: str) -> None:
        """For each kind and each status, every column of the resulting row is right."""
        message, table = KINDS[name]
        expected = row(status=status)
        if becomes := table[status]:
            expected |= {"status": becomes, "updated_at": CHANGED_AT}
            expected |= {"started_at": STARTED_AT} if name == "started" else {}
            expected |= {"completed_at": COMPLETED_AT} if name in ENDED else {}

        await project(
            tmp_path / "p.db",
            [*row_in(status), message | {"sequence": 3, "occurred_at": CHANGED_AT}],
        )

        assert await event(tmp_path / "p.db") == expected

    @pytest.mark.parametrize("name", [name for name in KINDS if name != "planned"])
    async def test_change_nothing_without_a_row(self, tmp_path: Path, name: str) -> None:
        """An event that was never planned gets no row."""
        (outcome,) = await project(tmp_path / "p.db", [KINDS[name][0]])

        assert outcome.verdict == "orphan"
        assert await event(tmp_path / "p.db") is None

    @pytest.mark.parametrize("build", [started, completed])
    async def test_take_their_times_from_the_message_alone(
        self, tmp_path: Path, build: Any
    ) -> None:
        """A time that the message leaves out becomes null, even if there was one before."""
        without = build("e", sequence=2**40)
        without["payload"] = {"event_id": "e"}

        await project(tmp_path / "p.db", [planned("e"), started("e"), without])

        kept = rows(tmp_path / "p.db", "SELECT started_at, completed_at FROM events")
        assert kept == [(None if build is started else STARTED_AT, None)]

    async def test_revert_leaves_the_times(self, tmp_path: Path) -> None:
        """Reverting a status sets the status and updated_at, and nothing else."""
        history = [planned("e"), started("e"), completed("e"), reverted("e", "planned")]

        await project(tmp_path / "p.db", history)

        kept = "SELECT status, started_at, completed_at FROM events"
        assert rows(tmp_path / "p.db", kept) == [("planned", STARTED_AT, COMPLETED_AT)]


class TestGetEvent:
    async def test_gives_none_for_an_unknown_event(self, tmp_path: Path) -> None:
        """An unknown event has no row, so the result is None."""
        await project(tmp_path / "p.db", [planned("e-1")])

        assert await event(tmp_path / "p.db", "e-2") is None
        assert await event(tmp_path / "p.db", "") is None

    async def test_parses_props(self, tmp_path: Path) -> None:
        """Props are a dict, whatever they hold, and an empty one by default."""
        props = {"b": [1, {"c": None}], "a": "\U0001f600", "n": 1.5}

        await project(tmp_path / "p.db", [planned("e", payload={"props": props}), planned("f")])

        assert (await event(tmp_path / "p.db") or {})["props"] == props
        assert (await event(tmp_path / "p.db", "f") or {})["props"] == {}
        ((kept,), _) = rows(tmp_path / "p.db", "SELECT props_json FROM events ORDER BY event_id")
        assert list(json.loads(kept)) == ["a", "b", "n"]

    @pytest.mark.parametrize(
        "event_id",
        ["'", '"', "''; DROP TABLE events; --", "%", "_", "\U0001f600", "a\nb", " e ", "[1]", "1",
         "null", "\\u0041", "\x01", "é", "e\u0301", "\u2028", "?1", ":a"],
    )  # fmt: skip
    async def test_finds_ids_of_any_characters(self, tmp_path: Path, event_id: str) -> None:
        """An id is text and nothing else: not SQL, not JSON, not a pattern."""
        other = [planned("e"), planned("A"), planned("1.0"), planned("E\u0301")]
        await project(tmp_path / "p.db", [*other, planned(event_id)])

        outcomes = await project(tmp_path / "p.db", [completed(event_id, sequence=0)])

        found = await event(tmp_path / "p.db", event_id)
        assert [o.verdict for o in outcomes] == ["late"]
        assert found is not None
        assert found["event_id"] == event_id
        assert (await event(tmp_path / "p.db") or {})["status"] == "planned"


class TestLists:
    @staticmethod
    async def fill(path: Path) -> None:
        """Plan events in an order that differs from that of their ids, and end some."""
        at = "2026-04-27T10:00:0{}Z".format
        await project(
            path,
            [
                planned("z", occurred_at=at(1)),
                planned("c", occurred_at=at(3)),
                planned("b", occurred_at=at(3)),
                planned("a", occurred_at=at(2)),
                planned("d", occurred_at=at(0), chat_id="chat-2"),
                planned("e", occurred_at=at(0)),
                started("a"),
                started("z"),
                completed("e"),
            ],
        )

    async def test_active_events_are_planned_or_going_on(self, tmp_path: Path) -> None:
        """The events of one chat, in the order of planning, then of ids."""
        await self.fill(tmp_path / "p.db")

        async with Reader(tmp_path / "p.db") as reader:
            found = await list_active_events(reader, "chat-1")

        assert [(e["event_id"], e["status"]) for e in found] == [
            ("z", "active"), ("a", "active"), ("b", "planned"), ("c", "planned"),
        ]  # fmt: skip
        assert found[0]["props"] == {}

    @pytest.mark.parametrize(
        ("status", "event_ids"),
        [("active", ["z", "a"]), ("planned", ["b", "c"]), ("completed", ["e"]), ("expired", [])],
    )
    async def test_events_in_one_status(
        self, tmp_path: Path, status: Status, event_ids: list[str]
    ) -> None:
        """The events of one chat in that status, in the order of planning."""
        await self.fill(tmp_path / "p.db")

        async with Reader(tmp_path / "p.db") as reader:
            found = await list_events_in_status(reader, "chat-1", status)

        assert [e["event_id"] for e in found] == event_ids

    async def test_of_an_unknown_chat_are_empty(self, tmp_path: Path) -> None:
        """An unknown chat has no events."""
        await self.fill(tmp_path / "p.db")

        async with Reader(tmp_path / "p.db") as reader:
            assert await list_active_events(reader, "chat-%") == []
            assert await list_events_in_status(reader, "CHAT-1", "planned") == []

    @pytest.mark.parametrize(
        ("query", "parameters", "index"),
        [(ONGOING, ("c",), "ongoing_of_chat"), (IN_STATUS, ("c", "expired"), "events_of_chat")],
    )
    async def test_use_an_index_of_the_chat(
        self, tmp_path: Path, query: str, parameters: tuple[str, ...], index: str
    ) -> None:
        """No query reads other chats' events, and the most frequent one reads no ended events."""
        await self.fill(tmp_path / "p.db")

        async with Reader(tmp_path / "p.db") as reader:
            plan = await reader.fetch_all(f"EXPLAIN QUERY PLAN {query}", parameters)

        assert plan[0]["detail"] == f"SEARCH events USING INDEX {index} (chat_id=?)"
