from pathlib import Path

import pytest

from tests.places import change, rows
from tests.store.contents import contents
from tests.store.test_tables import created
from tests.store.test_versions import NOTES, Said, rebuilt, say
from tests.unit.projecting import audited, project
from worker import Message, Transaction
from worker.errors import StoreUnusable
from worker.registry import Registry


class TestATableOfAnotherCase:
    async def test_is_in_the_way(self, tmp_path: Path) -> None:
        """SQLite knows tables by their names in any case."""
        await project(tmp_path / "p.db")
        change(tmp_path / "p.db", "CREATE TABLE Notes (mine TEXT)")
        before = contents(tmp_path / "p.db")
        registry = Registry()
        registry.projection(table="notes", version=1, schema=(NOTES.format(""),))

        with pytest.raises(StoreUnusable, match="no projection created the table Notes"):
            await created(tmp_path / "p.db", registry)

        assert contents(tmp_path / "p.db") == before


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
