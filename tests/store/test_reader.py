import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.builders import Message, planned, started
from tests.oracle import utc
from tests.places import Place
from tests.unit.projecting import arrivals, project, projecting
from tests.waiting import eventually, turns
from worker import NotYet, Reader
from worker.errors import StoreUnusable
from worker.projections.events import get_event, list_active_events, list_events_in_status
from worker.projector import Projector

EVENTS = 5
MESSAGES = 60
PATIENCE_SECONDS = 60.0


def tale() -> list[Message]:
    """Return messages of some events, in order, each of which changes its row."""
    events = [f"e-{number % EVENTS}" for number in range(MESSAGES)]
    return [
        planned(each) if number < EVENTS else started(each) for number, each in enumerate(events)
    ]


def is_older(row: dict[str, Any] | None, message: Message) -> bool:
    """Return whether a row lacks the effect of a message of its event."""
    return row is None or row["updated_at"] < utc(message["occurred_at"])


async def older_rows(reader: Reader, projector: Projector, *, is_after: bool) -> int:
    """Read the event of each message while they are projected; return how many rows lack it."""
    messages = tale()

    async def read(number: int, message: Message) -> bool:
        await turns(number * 20)
        after = message["id"] if is_after else None
        event_id = message["payload"]["event_id"]
        row = await get_event(reader, event_id, after=after, within=PATIENCE_SECONDS)
        return is_older(row, message)

    async with asyncio.TaskGroup() as group:
        reads = [
            group.create_task(read(number, message)) for number, message in enumerate(messages)
        ]
        for message in messages:
            await projector.project(arrivals([message]))
    return sum(read.result() for read in reads)


class TestAReadAfterAMessage:
    async def test_never_returns_a_row_without_it(self, place: Place) -> None:
        """Whenever it is asked, while a worker writes."""
        async with projecting(place) as projector, Reader(place) as reader:
            assert await older_rows(reader, projector, is_after=True) == 0

    async def test_differs_from_one_that_is_not(self, place: Place) -> None:
        """Which returns what there is, so the test above can fail."""
        async with projecting(place) as projector, Reader(place) as reader:
            assert await older_rows(reader, projector, is_after=False) > 0

    async def test_sees_one_moment(self, place: Place) -> None:
        """The message and the rows, whatever is committed between the two queries."""
        async with projecting(place) as projector, Reader(place) as reader:
            await projector.project(arrivals([planned("e")]))
            async with reader._database.snapshot() as fetch_all:
                ((before,),) = await fetch_all("SELECT count(*) FROM messages", ())
                await projector.project(arrivals([started("e")]))
                ((after,),) = await fetch_all("SELECT count(*) FROM messages", ())
            ((then,),) = await reader.fetch_all("SELECT count(*) FROM messages")

        assert (before, after, then) == (1, 1, 2)

    async def test_that_does_not_come_is_told(self, place: Place) -> None:
        """The error names event, message, and how long; an older row is no answer."""
        plan = planned("e")
        await project(place, [plan])

        async with Reader(place) as reader:
            assert await get_event(reader, "e", after=plan["id"], within=0) is not None
            with pytest.raises(NotYet) as error:
                await get_event(reader, "e", after="m-later", within=0.01)

        assert error.value.missing == (("e", "m-later"),)
        assert "no message 'm-later' of event 'e' yet (waited 0.01 seconds; " in str(error.value)
        assert "dead-letters show ID" in error.value.hint

    async def test_of_another_event_is_another(self, place: Place) -> None:
        """An id counts within its event."""
        plan = planned("e")
        await project(place, [plan])

        async with Reader(place) as reader:
            with pytest.raises(NotYet):
                await get_event(reader, "other", after=plan["id"], within=0)

    async def test_lists_the_events_of_a_chat(self, place: Place) -> None:
        """After several messages, of which the error names those that are missing."""
        first, second = planned("e-1"), planned("e-2")
        after = [("e-1", first["id"]), ("e-2", second["id"])]
        await project(place, [first])

        async with Reader(place) as reader:
            with pytest.raises(NotYet) as error:
                await list_active_events(reader, "chat-1", after=after, within=0)
            await project(place, [second])
            active = await list_active_events(reader, "chat-1", after=after)
            ended = await list_events_in_status(reader, "chat-1", "completed", after=after)

        assert error.value.missing == (("e-2", second["id"]),)
        assert [each["event_id"] for each in active] == ["e-1", "e-2"]
        assert ended == []

    async def test_is_for_any_query(self, place: Place) -> None:
        """Such as those of a projection of one's own."""
        plan = planned("e")
        await project(place, [plan])

        async with Reader(str(place) if isinstance(place, Path) else place) as reader:
            after = [("e", plan["id"]), ("e", plan["id"])]
            rows = await reader.fetch_all("SELECT count(*) AS n FROM log", after=after)

        assert [row["n"] for row in rows] == [1]

    async def test_waits_without_haste(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        """The pauses grow, so a long wait costs the database little."""
        await project(place, [planned("e")])
        looks = 0

        async with Reader(place) as reader:
            snapshot = reader._database.snapshot

            def counted() -> Any:
                nonlocal looks
                looks += 1
                return snapshot()

            monkeypatch.setattr(reader._database, "snapshot", counted)
            with pytest.raises(NotYet):
                await get_event(reader, "e", after="m", within=0.2)

        assert 2 <= looks <= 14

    async def test_ends_at_once_when_it_is_cancelled(self, place: Place) -> None:
        """The reader goes on, at whatever moment that was."""
        plan = planned("e")
        await project(place, [plan])

        async with Reader(place) as reader:
            for number in range(40):
                waiting = asyncio.create_task(get_event(reader, "e", after="m", within=60))
                await turns(number)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                assert await get_event(reader, "e", after=plan["id"], within=0) is not None

    async def test_takes_no_turn_while_it_waits(self, place: Place) -> None:
        """Other tasks read through the same reader meanwhile."""
        plan, start = planned("e"), started("e")
        await project(place, [plan])

        async with Reader(place) as reader:
            waiting = [
                asyncio.create_task(get_event(reader, "e", after=start["id"], within=60))
                for _ in range(20)
            ]
            await eventually(lambda: get_event(reader, "e"))
            await project(place, [start])
            rows = await asyncio.gather(*waiting)

        assert not any(is_older(row, start) for row in rows)

    @pytest.mark.parametrize("within", [-1, 61, float("nan"), float("inf")])
    async def test_has_a_bound(self, place: Place, within: float) -> None:
        """A wait without an end would hide that nobody writes."""
        await project(place, [planned("e")])

        async with Reader(place) as reader:
            with pytest.raises(ValueError, match="within must be 0 to 60 seconds"):
                await get_event(reader, "e", after="m", within=within)
            with pytest.raises(ValueError, match="100 messages at most, not 101"):
                await list_active_events(
                    reader, "c", after=[("e", f"m-{number}") for number in range(101)]
                )


class TestAReader:
    def test_of_a_wrong_url_is_refused(self) -> None:
        """In the words of the settings, and without any part of it."""
        with pytest.raises(StoreUnusable) as error:
            Reader("postgresql://u:s3cret/x@host/c")

        assert "a raw / in the user or password" in str(error.value)
        assert "s3cret" not in str(error.value)

    async def test_of_a_missing_database_says_so(self, place: Place) -> None:
        """It is not taken for an empty one."""
        with pytest.raises(StoreUnusable, match="start the worker once"):
            await Reader(place).__aenter__()
