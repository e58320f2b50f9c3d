import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.builders import (
    Message,
    body,
    cancelled,
    completed,
    planned,
    reverted,
    started,
)
from tests.oracle import expected_rows
from tests.places import Place, beside
from tests.unit.projecting import LOG, audited, project, rows, verdicts

# Some are equal moments in different notations, so that the id decides.
MOMENTS = (
    "2026-04-27T10:00:00Z",
    "2026-04-27T12:00:00+02:00",
    "2026-04-27T10:00:00.000",
    "2026-04-27T10:00:00.0000019Z",
    "2026-04-27 09:59:59.999999",
)
# UTF-16 sorts the last two the other way round; SQLite and Python must agree.
IDS = ("a", "B", "ab", "ä", "'", '"', "%", "\uffff", "\U0001f600")
STATUSES = ("planned", "active", "completed", "cancelled", "expired")

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
moments = st.sampled_from(MOMENTS)
event_ids = st.sampled_from(["e-1", "e-2", "e '\n\U0001f600"])


@st.composite
def payloads(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    payload: dict[str, Any] = {"event_id": draw(event_ids)}
    at = st.none() | moments
    match kind:
        case "event_planned":
            payload |= {"chat_id": draw(st.sampled_from("xy")), "kind": draw(st.sampled_from("kl"))}
            if draw(st.booleans()):
                payload["props"] = draw(st.dictionaries(text, values, max_size=3))
            payload["planned_for"] = draw(at)
        case "event_started":
            payload["started_at"] = draw(at)
        case "event_status_reverted":
            payload["prior_status"] = draw(st.sampled_from(STATUSES))
        case _:
            payload["completed_at"] = draw(at)
    return payload


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kinds = ("planned", "started", "completed", "cancelled", "expired", "status_reverted")
    kind = "event_" + draw(st.sampled_from(kinds))
    message: Message = {
        "id": draw(st.sampled_from(IDS)),
        "kind": kind,
        "occurred_at": draw(moments),
        "payload": draw(payloads(kind)),
    }
    if draw(st.booleans()):
        message["sequence"] = draw(st.sampled_from([0, 1, 2, 2**63 - 1]))
    return message


def same_otherwise(value: Any) -> Any:
    """Return the same content with its keys in reverse order."""
    if isinstance(value, dict):
        return {key: same_otherwise(value[key]) for key in reversed(value)}
    return [same_otherwise(each) for each in value] if isinstance(value, list) else value


def rewritten(message: Message) -> bytes:
    """Write the same content as other bytes."""
    return json.dumps(same_otherwise(message), indent=1, ensure_ascii=False).encode()


histories = st.lists(
    messages(), min_size=1, max_size=14, unique_by=lambda m: (m["payload"]["event_id"], m["id"])
)


@st.composite
def arrivals(draw: st.DrawFn, history: list[Message]) -> list[list[bytes | Message]]:
    """Deliver a history in any order, some messages twice, in batches of any size."""
    again = draw(st.lists(st.sampled_from(history), max_size=5))
    bodies = [*map(body, history), *(draw(st.sampled_from([body, rewritten]))(m) for m in again)]
    order: list[bytes | Message] = list(draw(st.permutations(bodies)))
    size = draw(st.sampled_from([1, 2, 3, len(order)]))
    return [order[start : start + size] for start in range(0, len(order), size)]


class TestAnyOrder:
    @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(data=st.data())
    async def test_gives_the_fold_of_each_stream(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        """Any order, duplicates and batches give the oracle's rows, byte for byte."""
        folder = tmp_path_factory.mktemp("any-order")
        history = data.draw(histories)
        files = (folder / "one.db", folder / "other.db")

        for file in files:
            again = data.draw(st.booleans())
            await project(file, *data.draw(arrivals(history)), again=again)

        for file in files:
            assert rows(file) == expected_rows(history)
            assert rows(file, LOG) == sorted((m["payload"]["event_id"], m["id"]) for m in history)
            assert (await audited(file)).differing == 0

    @settings(max_examples=50, deadline=None)
    @given(data=st.data())
    async def test_gives_the_same_bytes_in_pieces(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        """A history that arrives in pieces, with the file closed between them, gives equal rows."""
        folder = tmp_path_factory.mktemp("pieces")
        history = data.draw(histories)

        for batch in data.draw(arrivals(history)):
            await project(folder / "pieces.db", batch)
        await project(folder / "whole.db", history)

        as_bytes = "SELECT hex(props_json), * FROM events ORDER BY event_id"
        assert rows(folder / "pieces.db", as_bytes) == rows(folder / "whole.db", as_bytes)


def life(event_id: str) -> list[Message]:
    """Return five messages of one event in the order in which they happened."""
    return [
        planned(event_id, id="1", sequence=1),
        started(event_id, id="2", sequence=2),
        completed(event_id, id="3", sequence=3),
        reverted(event_id, "active", id="4", sequence=4),
        cancelled(event_id, id="5", sequence=5),
    ]


class TestAllPermutations:
    @pytest.mark.parametrize("batch_size", [1, 2, 5, 600])
    async def test_of_one_life_end_alike(self, place: Place, batch_size: int) -> None:
        """Whatever the order of arrival, the event is cancelled after it was taken back."""
        lives = [life(f"e-{number:03}") for number in range(120)]
        orders = zip(lives, permutations(range(5)), strict=True)
        arriving = [history[place] for history, order in orders for place in order]

        await project(place, *(arriving[n : n + batch_size] for n in range(0, 600, batch_size)))

        assert rows(place) == expected_rows(arriving)
        assert rows(place, "SELECT DISTINCT status FROM events") == [("cancelled",)]
        assert rows(place, "SELECT count(*) FROM log") == [(600,)]

    async def test_mark_the_same_messages_late_in_any_batches(self, place: Place) -> None:
        """Whether a message is late does not depend on how deliveries are split into batches."""
        history = life("e-1")
        arriving = [history[place] for place in (1, 3, 0, 4, 2)]

        await project(beside(place, "one"), arriving)
        await project(beside(place, "five"), *([message] for message in arriving))

        is_late = "SELECT id FROM log WHERE is_late = 1 ORDER BY id"
        assert rows(beside(place, "one"), is_late) == [("1",), ("3",)]
        assert rows(beside(place, "five"), is_late) == [("1",), ("3",)]


SECOND_CONTENTS = {
    "another payload": {"payload": {"chat_id": "chat-2"}},
    "another sequence": {"sequence": 1},
    "another time": {"occurred_at": "2026-04-27T09:00:00Z"},
    "the same time written otherwise": {"occurred_at": "2026-04-27T12:00:00+02:00"},
    "an unknown field": {"more": 1},
}


class TestOneContentUnderOneId:
    @pytest.mark.parametrize("batches", [1, 2])
    async def test_is_a_duplicate_however_it_is_written(self, place: Place, batches: int) -> None:
        """Spaces, escapes and the order of keys do not matter; the first bytes are kept."""
        first = planned("e-1", payload={"props": {"ä": [1.50, {"b": 1, "a": 2}]}})
        both = [body(first), rewritten(first)]

        outcomes = await project(place, *([both] if batches == 1 else [both[:1], both]))

        assert verdicts(outcomes) == ["applied", *["duplicate"] * batches]
        assert rows(place, "SELECT body FROM log") == [(both[0].decode(),)]


class TestTwoContentsUnderOneId:
    @pytest.mark.parametrize("change", SECOND_CONTENTS.values(), ids=SECOND_CONTENTS)
    @pytest.mark.parametrize("batches", [1, 2])
    async def test_first_counts(self, place: Place, change: dict[str, Any], batches: int) -> None:
        """The second is a conflict, in the same batch and in a later one."""
        at: Message = {"id": "m", "sequence": 5, "occurred_at": "2026-04-27T10:00:00Z"}
        first, second = planned("e-1", **at), planned("e-1", **(at | change))
        arriving = [[first, second]] if batches == 1 else [[first], [second]]

        outcomes = await project(place, *arriving)

        assert verdicts(outcomes) == ["applied", "id_conflict"]
        assert rows(place) == expected_rows([first, second])
        assert (await audited(place)).differing == 0

    async def test_is_settled_by_arrival(self, place: Place) -> None:
        """Whichever arrives first counts, and repeats of either change nothing."""
        one, other = planned("e-1", id="m"), planned("e-1", chat_id="chat-2", id="m")

        outcomes = await project(place, [other, one, other], [one, other])

        assert verdicts(outcomes) == [
            "applied", "id_conflict", "duplicate", "id_conflict", "duplicate",
        ]  # fmt: skip
        assert rows(place) == expected_rows([other])

    async def test_of_different_events_do_not_conflict(self, place: Place) -> None:
        """A message's identity is its id within its stream."""
        outcomes = await project(place, [planned("e-1", id="m"), planned("e-2", id="m")])

        assert verdicts(outcomes) == ["applied", "applied"]

    async def test_says_which_id_and_event(self, place: Place) -> None:
        """A person can find the publisher's fault from the error text alone."""
        history = [planned("e-1", id="m-7"), started("e-1", id="m-7")]

        (_, conflict) = await project(place, history)

        assert conflict.rejected is not None
        assert "'m-7'" in conflict.rejected.detail
        assert "'e-1'" in conflict.rejected.detail
