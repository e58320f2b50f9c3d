from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.builders import Message, body, completed, planned, started
from tests.places import change
from tests.unit.projecting import CAP, LOG, project, rows, verdicts
from worker.deliveries import Delivery
from worker.preview import Preview, preview
from worker.projections import load
from worker.store.sqlite.connection import Reader

LIFE = [
    planned("e-1", sequence=1),
    started("e-1", sequence=3),
    completed("e-1", sequence=5, id="m-5"),
]


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Reader]:
    """Yield a database that holds one event's history, opened as a command opens it."""
    await project(tmp_path / "live.db", LIFE)
    async with Reader(tmp_path / "live.db") as reader:
        yield reader


async def seen(live: Reader | None, message: Message | bytes) -> Preview:
    content = message if isinstance(message, bytes) else body(message)
    return await preview(live, load(), Delivery(content), CAP)


class TestAPreview:
    @pytest.mark.parametrize(
        "message",
        [
            started("e-1", sequence=9),
            started("e-1", sequence=2),
            LIFE[1],
            completed("e-1", id="m-5", sequence=8),
            planned("e-2"),
            started("e-2"),
            b"broken",
        ],
        ids=["applied", "late", "duplicate", "id_conflict", "new", "orphan", "not_json"],
    )
    async def test_tells_what_the_worker_then_does(
        self, live: Reader, tmp_path: Path, message: Message | bytes
    ) -> None:
        """Verdict, reason and row are those of the worker; the preview changes nothing."""
        file = tmp_path / "live.db"
        log_before, rows_before = rows(file, LOG), rows(file)

        told = await seen(live, message)
        assert (rows(file, LOG), rows(file)) == (log_before, rows_before)
        done = await project(file, [message])

        assert verdicts([told.outcome]) == verdicts(done)
        for table_rows, all_rows in ((told.before, rows_before), (told.after, rows(file))):
            row = table_rows.get("events")
            if told.outcome.event_id is not None:
                of_it = [each for each in all_rows if each[0] == told.outcome.event_id]
                assert ([tuple(row.values())] if row else []) == of_it

    async def test_without_a_database_has_no_row_before(self) -> None:
        """Every event is unknown then."""
        told = await seen(None, planned("e-1"))

        assert told.before == {"events": None}
        assert (told.after["events"] or {})["status"] == "planned"

    async def test_of_a_late_message_finds_what_cannot_be_folded_again(
        self, live: Reader, tmp_path: Path
    ) -> None:
        """The log holds a message that today's handlers refuse, and the fold would reach it."""
        change(tmp_path / "live.db", "UPDATE log SET body = '{}' WHERE sequence = 3")

        late = await seen(live, started("e-1", sequence=2))
        after_the_head = await seen(live, started("e-1", sequence=9))

        assert verdicts([late.outcome, after_the_head.outcome]) == ["handler_failed", "applied"]
        assert late.before == late.after
