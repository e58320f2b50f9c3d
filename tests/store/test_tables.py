from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.places import Place, change, reader_at, rows, writer_at
from tests.store.contents import contents
from tests.store.test_versions import NOTES, notes, rebuilt, say
from tests.unit.projecting import project
from worker.errors import StoreUnusable
from worker.rebuild import create_tables, rebuild
from worker.registry import Registry
from worker.store.engines import store_of
from worker.store.tables import RESERVED

Replace = Callable[[Place, Registry], Awaitable[None]]
UNLOGGED = {
    "rows": "DELETE FROM log; DELETE FROM streams",
    "streams": "DELETE FROM log; DELETE FROM notes",
    "both": "DELETE FROM log",
}


async def created(place: Place, registry: Registry) -> None:
    async with writer_at(place) as writer:
        await create_tables(writer, registry)


class TestReservedNames:
    async def test_are_those_of_the_worker(self, place: Place) -> None:
        """They are the tables and views that every database has, and those of the other store."""
        async with writer_at(place):
            pass

        own = {name for kind, name, _ in contents(place) if kind != "index"}

        assert RESERVED - own == ({"store", "consumption"} if isinstance(place, Path) else {"file"})
        assert own < RESERVED


class TestALostLog:
    """A file with rows and an empty log is not a new file: nothing could restore the rows."""

    @pytest.mark.parametrize("sql", UNLOGGED.values(), ids=UNLOGGED)
    @pytest.mark.parametrize("replace", [rebuilt, created])
    @pytest.mark.parametrize("version", [1, 2])
    async def test_keeps_every_table(
        self, place: Place, sql: str, replace: Replace, version: int
    ) -> None:
        """Neither a rebuild nor a start drops a table that the log cannot restore."""
        await project(place, [say("e"), say("f")], registry=notes(1))
        for each in sql.split(";"):
            change(place, each)
        before = rows(place, "SELECT * FROM notes"), rows(place, "SELECT * FROM streams")

        with pytest.raises(StoreUnusable, match=r"log is empty, but the table .* has rows") as told:
            await replace(place, notes(version))

        assert "restore a backup" in told.value.hint
        after = rows(place, "SELECT * FROM notes"), rows(place, "SELECT * FROM streams")
        assert after == before
        assert rows(place, "SELECT version FROM projections") == [(1,)]

    async def test_is_none_of_a_database_that_receives_its_first_message(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another worker may accept it between the looks at the log and at the other tables."""
        await project(place, registry=notes(1))
        async with reader_at(place) as reader:
            existing = reader._existing

            async def receive_and_look(tables: list[str]) -> list[str]:
                await project(place, [say("e")], registry=notes(1))
                return await existing(tables)

            monkeypatch.setattr(reader, "_existing", receive_and_look)
            await reader.require_log()

    async def test_is_none_of_a_new_file(self, place: Place) -> None:
        """A file without rows is accepted, and so is one with a log."""
        await project(place, registry=notes(1))
        async with reader_at(place) as reader:
            await reader.require_log()

        await project(place, [say("e")], registry=notes(1))
        async with reader_at(place) as reader:
            await reader.require_log()


OTHERS = {
    "table": ("CREATE TABLE notes (mine TEXT)", "no projection created the table notes"),
    "view": ("CREATE VIEW notes AS SELECT 1 AS mine", "no projection created the view notes"),
    "index": (
        "CREATE INDEX notes ON events (status)", "no projection created the index notes",
    ),
    "name of an index": ("CREATE TABLE by_text (mine TEXT)", "by_text"),
    "name of another index": ("CREATE INDEX by_text ON streams (event_id)", "by_text"),
}  # fmt: skip


class TestWhatOthersHaveMade:
    """A table that the user created stays in the database, whatever is registered."""

    @pytest.mark.parametrize("replace", [rebuilt, created])
    @pytest.mark.parametrize(("sql", "found"), OTHERS.values(), ids=OTHERS)
    async def test_is_never_dropped(
        self, place: Place, sql: str, found: str, replace: Replace
    ) -> None:
        """A new projection with its name is refused with an error, and nothing is changed."""
        await project(place)
        change(place, sql)
        before = contents(place)
        registry = Registry()
        index = "CREATE INDEX by_text ON notes (text)"
        registry.projection(table="notes", version=1, schema=(NOTES.format(""), index))

        with pytest.raises(StoreUnusable, match="cannot be put in place") as told:
            await replace(place, registry)

        assert found in told.value.message
        assert store_of(place).named in told.value.message
        assert contents(place) == before

    @pytest.mark.parametrize("name", ["log", "streams", "messages", "x; DROP TABLE log", "Log"])
    async def test_is_not_dropped_for_a_note(self, place: Place, name: str) -> None:
        """The log is not dropped, either, even if the file notes it as a projection's table."""
        await project(place, [say("e")], registry=notes(1))
        change(place, f"INSERT INTO projections VALUES ('{name}', 1)")

        with pytest.raises(StoreUnusable, match=f"a projection with the table '{name}'"):
            await rebuilt(place, notes(2))
        with pytest.raises(StoreUnusable, match=f"a projection with the table '{name}'"):
            async with reader_at(place) as reader:
                await reader.noted_versions()

        assert rows(place, "SELECT count(*) FROM log") == [(1,)]


MINE = "CREATE{} INDEX mine ON notes (text, event_id)"


class TestAnIndexOfTheUser:
    @pytest.mark.parametrize("unique", ["", " UNIQUE"])
    async def test_outlives_a_rebuild(self, place: Place, unique: str) -> None:
        """It is created again and contains all rows."""
        await project(place, [say("e"), say("f")], registry=notes(1))
        change(place, MINE.format(unique))
        before = contents(place)

        await rebuilt(place, notes(1))

        assert contents(place) == before

    async def test_on_the_table_of_another_version_is_named_as_it_goes(self, place: Place) -> None:
        """This version may have dropped it on purpose, or its table may not fit it."""
        await project(place, [say("e")], registry=notes(1))
        change(place, MINE.format(""))
        (mine,) = (definition for _, name, definition in contents(place) if name == "mine")

        async with writer_at(place) as writer:
            found = await rebuild(writer, notes(2), lambda done, total: None)

        assert found.dropped_indexes == (mine,)
        assert "mine" not in [name for _, name, _ in contents(place)]


IN_A_FILE = "CREATE TRIGGER mine AFTER INSERT ON notes BEGIN DELETE FROM notes; END"
IN_A_SCHEMA = """
    CREATE FUNCTION deletes() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN DELETE FROM notes; RETURN NULL; END $$;
    CREATE TRIGGER mine AFTER INSERT ON notes EXECUTE FUNCTION deletes()
"""


class TestATriggerOfTheUser:
    @pytest.mark.parametrize("version", [1, 2])
    async def test_is_refused_and_left(self, place: Place, version: int) -> None:
        """It would be lost with the table, and what it writes is not part of the fold."""
        await project(place, [say("e")], registry=notes(1))
        change(place, IN_A_FILE if isinstance(place, Path) else IN_A_SCHEMA)
        before = contents(place), rows(place, "SELECT * FROM notes")

        with pytest.raises(StoreUnusable, match=r"trigger '?mine") as refused:
            await rebuilt(place, notes(version))

        assert "drop it" in refused.value.hint
        assert (contents(place), rows(place, "SELECT * FROM notes")) == before
