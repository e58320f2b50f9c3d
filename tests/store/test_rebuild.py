from itertools import chain
from typing import Any

import pytest

from tests.builders import Message, completed, planned, reverted, started
from tests.oracle import expected_rows
from tests.places import Place, change, writer_at
from tests.store.contents import contents, leftovers
from tests.unit.projecting import LOG, audited, project, rows
from worker.projections import load
from worker.rebuild import Audit, Progress, audit, rebuild
from worker.registry import Registry
from worker.store.engines import store_of

GHOST = """
    INSERT INTO events
    SELECT 'ghost', chat_id, kind, status, props_json, null, null, null, created_at, updated_at
    FROM events WHERE event_id = 'e-00000' ON CONFLICT DO NOTHING
"""
TAMPER = "UPDATE events SET status = 'tampered' WHERE event_id = 'e-00003'"


def history(events: int = 10) -> list[Message]:
    """Return the messages of events in several statuses, some late and one an orphan."""
    ids = [f"e-{number:05}" for number in range(events)]
    lives = [[started(e, sequence=2), planned(e, sequence=1), completed(e)] for e in ids]
    return [*chain(*lives), reverted(ids[0], "active"), started("orphan")]


async def rebuilt(place: Place, registry: Registry | None = None, **more: Any) -> Audit:
    progress: Progress = more.pop("progress", lambda done, total: None)
    async with writer_at(place) as writer:
        return await rebuild(writer, registry or load(), progress, **more)


class TestRebuild:
    async def test_gives_the_rows_that_there_were(self, place: Place) -> None:
        """Live or rebuilt, the rows are the same bytes, and the file works as before."""
        await project(place, history())
        before = rows(place, "SELECT * FROM events ORDER BY event_id")

        found = await rebuilt(place)
        await project(place, [planned("later")])

        assert found == Audit(messages=32, rows=10, differing=0, differences=())
        after = rows(place, "SELECT * FROM events ORDER BY event_id")
        assert after[:10] == before
        assert after[10][0] == "later"

    @pytest.mark.parametrize(
        ("sql", "live", "folded"),
        [
            (TAMPER, "tampered", "completed"),
            ("DELETE FROM events WHERE event_id = 'e-00003'", None, "completed"),
            (GHOST, "active", None),
        ],
        ids=["changed", "missing", "ghost"],
    )
    async def test_repairs_what_is_not_the_fold(
        self, place: Place, sql: str, live: str | None, folded: str | None
    ) -> None:
        """A row that was tampered with is counted, shown and repaired."""
        await project(place, history())
        before = rows(place)
        change(place, sql)

        found = await rebuilt(place, examples=5)

        (difference,) = found.differences
        assert found.differing == 1
        assert difference.table == "events"
        assert (difference.live or {}).get("status") == live
        assert (difference.folded or {}).get("status") == folded
        assert rows(place) == before

    async def test_shows_as_many_differences_as_asked(self, place: Place) -> None:
        """All differences are counted, and the first ones are shown in full."""
        await project(place, history())
        change(place, "UPDATE events SET chat_id = 'x' WHERE event_id < 'e-00007'")

        found = await audited(place)
        none = await rebuilt(place, examples=0)

        assert [d.event_id for d in found.differences] == [f"e-0000{n}" for n in range(7)]
        assert (found.differing, none.differing, none.differences) == (7, 7, ())

    async def test_reports_progress_over_streams_of_any_length(self, place: Place) -> None:
        """A stream that is longer than a chunk of the scan is folded completely."""
        long = [planned("e-1"), *(reverted("e-1", "active") for _ in range(4_500))]
        both = [planned("e-0"), *long, planned("e-2")]
        steps: list[tuple[int, int]] = []
        await project(place, both)

        found = await rebuilt(place, progress=lambda *step: steps.append(step))

        assert (found.messages, found.differing) == (4_503, 0)
        assert steps == sorted(steps)
        assert steps[-1] == (4_503, 4_503)
        assert rows(place) == expected_rows(both)

    async def test_of_an_empty_log_gives_empty_tables(self, place: Place) -> None:
        """A file that has received no message yet is rebuilt like any other."""
        await project(place)

        found = await rebuilt(place)

        assert (found.messages, found.rows, found.differing) == (0, 0, 0)
        assert rows(place) == []


class TestAudit:
    async def test_changes_nothing(self, place: Place) -> None:
        """It finds the tampered row and leaves it alone."""
        await project(place, history())
        change(place, TAMPER)
        before = contents(place), rows(place), rows(place, LOG)

        found = await audited(place)

        assert found.differing == 1
        assert (contents(place), rows(place), rows(place, LOG)) == before
        assert not leftovers(place)

    async def test_sees_one_snapshot_while_the_worker_writes(self, place: Place) -> None:
        """A commit during the audit shows in neither of the two sides."""
        await project(place, history())

        found = await audit(
            store_of(place),
            load(),
            lambda done, total: change(place, GHOST),
            examples=10,
        )

        assert found.differing == 0
        assert (await audited(place)).differing == 1


class TestReaders:
    async def test_see_the_old_rows_until_the_new_ones_are_complete(self, place: Place) -> None:
        """While the log is folded, every query reads as before."""
        await project(place, history())
        change(place, TAMPER)
        before, seen = rows(place), []

        await rebuilt(place, progress=lambda *_: seen.append(rows(place)))

        assert seen == [before] * len(seen)
        assert seen
        assert rows(place) != before
