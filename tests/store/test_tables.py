from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.builders import planned
from tests.database import change
from tests.store.test_versions import NOTES, Said, notes, rebuilt, say
from tests.unit.projecting import audited, project, rows
from worker import Message, Transaction
from worker.errors import StoreUnusable
from worker.rebuild import create_tables, rebuild
from worker.registry import Registry
from worker.store.sqlite.connection import Reader
from worker.store.sqlite.store import Writer
from worker.store.tables import RESERVED

Replace = Callable[[Path, Registry], Awaitable[None]]
CONTENT = "SELECT type, name, sql FROM sqlite_schema ORDER BY name"
UNLOGGED = {
    "rows": "DELETE FROM log; DELETE FROM streams",
    "streams": "DELETE FROM log; DELETE FROM notes",
    "both": "DELETE FROM log",
}


async def created(path: Path, registry: Registry) -> None:
    async with Writer(path) as writer:
        await create_tables(writer, registry)


class TestReservedNames:
    async def test_are_those_of_the_worker(self, tmp_path: Path) -> None:
        """They are the tables and views that every file has, and those of the other store."""
        async with Writer(tmp_path / "p.db"):
            pass

        own = rows(tmp_path / "p.db", "SELECT name FROM sqlite_schema WHERE sql IS NOT NULL")

        assert {name for (name,) in own} == RESERVED - {"store"}


class TestALostLog:
    """A file with rows and an empty log is not a new file: nothing could restore the rows."""

    @pytest.mark.parametrize("sql", UNLOGGED.values(), ids=UNLOGGED)
    @pytest.mark.parametrize("replace", [rebuilt, created])
    @pytest.mark.parametrize("version", [1, 2])
    async def test_keeps_every_table(
        self, tmp_path: Path, sql: str, replace: Replace, version: int
    ) -> None:
        """Neither a rebuild nor a start drops a table that the log cannot restore."""
        path = tmp_path / "p.db"
        await project(path, [say("e"), say("f")], registry=notes(1))
        for each in sql.split(";"):
            change(path, each)
        before = rows(path, "SELECT * FROM notes"), rows(path, "SELECT * FROM streams")

        with pytest.raises(StoreUnusable, match=r"log is empty, but the table .* has rows") as told:
            await replace(path, notes(version))

        assert "restore a backup" in told.value.hint
        after = rows(path, "SELECT * FROM notes"), rows(path, "SELECT * FROM streams")
        assert after == before
        assert rows(path, "SELECT version FROM projections") == [(1,)]

    async def test_is_none_of_a_new_file(self, tmp_path: Path) -> None:
        """A file without rows is accepted, and so is one with a log."""
        await project(tmp_path / "p.db", registry=notes(1))
        async with Reader(tmp_path / "p.db") as reader:
            await reader.require_log()

        await project(tmp_path / "p.db", [say("e")], registry=notes(1))
        async with Reader(tmp_path / "p.db") as reader:
            await reader.require_log()


OTHERS = {
    "table": ("CREATE TABLE notes (mine TEXT)", "no projection created the table notes"),
    "in capitals": ("CREATE TABLE Notes (mine TEXT)", "no projection created the table Notes"),
    "view": ("CREATE VIEW notes AS SELECT 1 AS mine", "no projection created the view notes"),
    "index": (
        "CREATE INDEX notes ON events (status)", "no projection created the index notes",
    ),
    "name of an index": ("CREATE TABLE by_text (mine TEXT)", "already a table named by_text"),
    "name of another index": (
        "CREATE INDEX by_text ON streams (event_id)", "index by_text already exists",
    ),
}  # fmt: skip


class TestWhatOthersHaveMade:
    """A table that the user created stays in the file, whatever is registered."""

    @pytest.mark.parametrize(("sql", "found"), OTHERS.values(), ids=OTHERS)
    async def test_is_never_dropped(self, tmp_path: Path, sql: str, found: str) -> None:
        """A new projection with its name is refused with an error, and nothing is changed."""
        path = tmp_path / "p.db"
        await project(path, [planned("e")])
        change(path, sql)
        before = rows(path, CONTENT), rows(path)
        registry = Registry()
        index = "CREATE INDEX by_text ON notes (text)"
        registry.projection(table="notes", version=1, schema=(NOTES.format(""), index))

        with pytest.raises(StoreUnusable) as told:
            await created(path, registry)

        assert found in told.value.message
        assert str(path) in told.value.message
        assert (rows(path, CONTENT), rows(path)) == before

    @pytest.mark.parametrize("name", ["log", "streams", "messages", "x; DROP TABLE log", "Log"])
    async def test_is_not_dropped_for_a_note(self, tmp_path: Path, name: str) -> None:
        """The log is not dropped, either, even if the file notes it as a projection's table."""
        path = tmp_path / "p.db"
        await project(path, [say("e")], registry=notes(1))
        change(path, f"INSERT INTO projections VALUES ('{name}', 1)")

        with pytest.raises(StoreUnusable, match=f"a projection with the table '{name}'"):
            await rebuilt(path, notes(2))
        with pytest.raises(StoreUnusable, match=f"a projection with the table '{name}'"):
            async with Reader(path) as reader:
                await reader.noted_versions()

        assert rows(path, "SELECT count(*) FROM log") == [(1,)]


MINE = "CREATE{} INDEX mine ON notes (text, event_id)"


class TestAnIndexOfTheUser:
    @pytest.mark.parametrize("unique", ["", " UNIQUE"])
    async def test_outlives_a_rebuild(self, tmp_path: Path, unique: str) -> None:
        """It is created again and contains all rows."""
        path = tmp_path / "p.db"
        await project(path, [say("e"), say("f")], registry=notes(1))
        change(path, MINE.format(unique))
        before = rows(path, CONTENT)

        await rebuilt(path, notes(1))

        assert rows(path, CONTENT) == before
        assert rows(path, "SELECT event_id FROM notes INDEXED BY mine") == [("e",), ("f",)]

    async def test_on_the_table_of_another_version_is_named_as_it_goes(
        self, tmp_path: Path
    ) -> None:
        """This version may have dropped it on purpose, or its table may not fit it."""
        path = tmp_path / "p.db"
        await project(path, [say("e")], registry=notes(1))
        change(path, MINE.format(""))

        async with Writer(path) as writer:
            found = await rebuild(writer, notes(2), lambda done, total: None)

        assert found.dropped_indexes == (MINE.format(""),)
        assert "mine" not in [name for _, name, _ in rows(path, CONTENT)]


class TestATriggerOfTheUser:
    @pytest.mark.parametrize("version", [1, 2])
    async def test_is_refused_and_left(self, tmp_path: Path, version: int) -> None:
        """It would be lost with the table, and what it writes is not part of the fold."""
        path = tmp_path / "p.db"
        await project(path, [say("e")], registry=notes(1))
        change(path, "CREATE TRIGGER mine AFTER INSERT ON notes BEGIN DELETE FROM notes; END")
        before = rows(path, CONTENT), rows(path, "SELECT * FROM notes")

        with pytest.raises(StoreUnusable, match="notes has a trigger 'mine'") as refused:
            await rebuilt(path, notes(version))

        assert 'DROP TRIGGER "mine"' in refused.value.hint
        assert (rows(path, CONTENT), rows(path, "SELECT * FROM notes")) == before


class TestAColumnWithACollation:
    async def test_is_compared_to_the_byte(self, tmp_path: Path) -> None:
        """A row that differs only in case is found and corrected."""
        registry = Registry()
        table = 'CREATE TABLE notes (event_id TEXT PRIMARY KEY, "te""xt" TEXT COLLATE NOCASE)'
        registry.projection(table="notes", version=1, schema=(table,))

        @registry.on("said")
        async def said(tx: Transaction, message: Message[Said]) -> None:
            await tx.execute("INSERT INTO notes VALUES (?, ?)", (message.event_id, "x"))

        await project(tmp_path / "p.db", [say("e", "x")], registry=registry)
        change(tmp_path / "p.db", 'UPDATE notes SET "te""xt" = \'X\'')

        assert (await audited(tmp_path / "p.db", registry)).differing == 1
        await rebuilt(tmp_path / "p.db", registry)

        assert rows(tmp_path / "p.db", "SELECT * FROM notes") == [("e", "x")]
