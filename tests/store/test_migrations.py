import sqlite3
from importlib import resources
from pathlib import Path

from tests.builders import planned, started
from tests.database import change
from tests.unit.projecting import arrivals, projecting, rows
from worker.store.sqlite.migrations import SCHEMA_VERSION
from worker.store.sqlite.store import Writer

LATER_TABLES = ("file", "kinds", "filler")


def as_of_version_1(path: Path) -> None:
    """Remove what later versions of the schema added."""
    for table in LATER_TABLES:
        change(path, f"DROP TABLE {table}")
    change(path, "PRAGMA user_version = 1")


class TestAFileOfAnOlderSchema:
    async def test_is_brought_up_to_date_when_a_worker_opens_it(self, tmp_path: Path) -> None:
        """Its log and rows stay, and the new tables have the right contents."""
        path = tmp_path / "p.db"
        async with projecting(path) as projector:
            await projector.project(arrivals([planned("e"), started("e")]))
        before = rows(path)
        as_of_version_1(path)

        async with Writer(path) as writer:
            noted, file_id = await writer.kinds(), await writer.id()

        assert rows(path) == before
        assert noted == {"event_planned", "event_started"}
        assert len(file_id) == 32
        assert rows(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]

    async def test_has_the_tables_of_a_new_one(self, tmp_path: Path) -> None:
        """There is one schema, whichever way a file reached it."""
        async with Writer(tmp_path / "new.db"), Writer(tmp_path / "old.db"):
            pass
        as_of_version_1(tmp_path / "old.db")
        async with Writer(tmp_path / "old.db"):
            pass

        schema = "SELECT type, name, sql FROM sqlite_schema ORDER BY name"
        assert rows(tmp_path / "old.db", schema) == rows(tmp_path / "new.db", schema)

    async def test_of_which_the_update_was_interrupted_is_updated_at_the_next_start(
        self, tmp_path: Path
    ) -> None:
        """Each script is one transaction, so a new file may have only the first version."""
        path = tmp_path / "p.db"
        with sqlite3.connect(path) as made:
            made.executescript(
                resources.files("worker.store.sqlite").joinpath("schema.sql").read_text()
            )
        made.close()

        async with Writer(path) as writer:
            assert await writer.kinds() == set()


class TestTwoFiles:
    async def test_have_two_identities_that_last(self, tmp_path: Path) -> None:
        """A copy keeps the id of its original; a new file always gets another."""
        found = []
        for name in ("a.db", "b.db", "a.db"):
            async with Writer(tmp_path / name) as writer:
                found.append(await writer.id())

        assert found[0] == found[2] != found[1]
