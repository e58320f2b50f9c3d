from pathlib import Path
from typing import Any

import pytest

from tests.builders import Message as Wire
from tests.builders import message
from tests.database import change
from tests.unit.projecting import audited, project, rows
from worker import Message, Payload, Transaction
from worker.errors import StoreUnusable
from worker.rebuild import create_tables, reason_to_rebuild, rebuild
from worker.registry import Registry
from worker.store.sqlite.store import Writer


class Said(Payload):
    """A payload with a text."""

    text: str


NOTES = "CREATE TABLE notes (event_id TEXT PRIMARY KEY, text TEXT{})"


def notes(version: int, column: str = "", check: str = "") -> Registry:
    """Return a registry with one version of a projection."""
    registry = Registry()
    end = f", {column} INTEGER" if column else check
    registry.projection(table="notes", version=version, schema=(NOTES.format(end),))

    @registry.on("said")
    async def said(tx: Transaction, message: Message[Said]) -> None:
        if message.payload.text == "raise" and version > 1:
            raise ValueError("no longer understood")
        values: dict[str, Any] = {"e": message.event_id, "text": message.payload.text}
        more = f", {version}" if column else ""
        sql = f"INSERT INTO notes VALUES (:e, :text{more}) ON CONFLICT DO UPDATE SET text = :text"
        await tx.execute(sql, values)

    return registry


def say(event_id: str, text: str = "x", **more: Any) -> Wire:
    return message("said", {"event_id": event_id, "text": text, **more})


async def rebuilt(path: Path, registry: Registry) -> None:
    async with Writer(path) as writer:
        await rebuild(writer, registry, lambda done, total: None)


class TestReason:
    def test_is_none_for_the_same_versions(self) -> None:
        """A worker that starts again folds nothing."""
        assert reason_to_rebuild({"notes": 1}, notes(1)) is None

    @pytest.mark.parametrize(
        ("noted", "reason"),
        [
            ({"notes": 1}, "notes was folded by version 1, this worker has 2"),
            ({"notes": 3}, "notes was folded by version 3, this worker has 2"),
            ({}, "notes was folded by version none, this worker has 2"),
            (
                {"notes": 2, "gone": 4},
                "gone was folded by version 4, this worker has none",
            ),
            (
                {"gone": 4},
                "gone was folded by version 4, this worker has none; "
                "notes was folded by version none, this worker has 2",
            ),
        ],
    )
    def test_names_what_has_changed(self, noted: dict[str, int], reason: str) -> None:
        """It names every changed table with its two versions: newer, older, new and removed."""
        assert reason_to_rebuild(noted, notes(2)) == reason

    async def test_is_gone_after_the_rebuild(self, tmp_path: Path) -> None:
        """The file notes the versions that folded its rows."""
        await project(tmp_path / "p.db", [say("e")], registry=notes(1))

        async with Writer(tmp_path / "p.db") as writer:
            before = reason_to_rebuild(await writer.noted_versions(), notes(2))
            await rebuild(writer, notes(2), lambda done, total: None)
            after = reason_to_rebuild(await writer.noted_versions(), notes(2))

        assert (before is None, after) == (False, None)

    async def test_is_none_for_a_new_file(self, tmp_path: Path) -> None:
        """The empty tables of a new file have the versions of this worker."""
        async with Writer(tmp_path / "p.db") as writer:
            assert await writer.noted_versions() == {}
            await create_tables(writer, notes(2))

            assert await writer.noted_versions() == {"notes": 2}


class TestChangedTable:
    async def test_is_replaced(self, tmp_path: Path) -> None:
        """After the rebuild every row has the new column, filled from the log."""
        await project(tmp_path / "p.db", [say("e"), say("f")], registry=notes(1))

        await rebuilt(tmp_path / "p.db", notes(2, column="more"))

        assert rows(tmp_path / "p.db", "SELECT event_id, text, more FROM notes") == [
            ("e", "x", 2), ("f", "x", 2),
        ]  # fmt: skip

    async def test_counts_every_row_as_differing(self, tmp_path: Path) -> None:
        """Rows with different columns are never equal."""
        await project(tmp_path / "p.db", [say("e"), say("f")], registry=notes(1))

        found = await audited(tmp_path / "p.db", notes(2, column="more"))

        assert (found.rows, found.differing) == (2, 2)
        assert found.differences[0].live == {"event_id": "e", "text": "x"}
        assert found.differences[0].folded == {"event_id": "e", "text": "x", "more": 2}

    async def test_that_is_gone_is_dropped(self, tmp_path: Path) -> None:
        """A table without a projection would stay stale forever."""
        both = notes(1)
        both.projection(table="gone", version=1, schema=("CREATE TABLE gone (event_id TEXT)",))
        await project(tmp_path / "p.db", [say("e")], registry=both)

        await rebuilt(tmp_path / "p.db", notes(1))

        tables = "SELECT name FROM sqlite_schema WHERE name IN ('notes', 'gone')"
        assert rows(tmp_path / "p.db", tables) == [("notes",)]
        assert rows(tmp_path / "p.db", "SELECT * FROM projections") == [("notes", 1)]

    async def test_that_is_new_is_filled(self, tmp_path: Path) -> None:
        """A new projection gets the whole history."""
        await project(tmp_path / "p.db", [say("e")], registry=notes(1))
        change(tmp_path / "p.db", "DROP TABLE notes")

        await rebuilt(tmp_path / "p.db", notes(1))

        assert rows(tmp_path / "p.db", "SELECT * FROM notes") == [("e", "x")]


class TestLogThatCannotBeFolded:
    @pytest.mark.parametrize(
        ("registry", "cause"),
        [
            (notes(2), "ValueError: no longer understood"),
            (notes(2, check=" CHECK (text <> 'raise')"), "no longer understood"),
            (notes(1, check=" CHECK (text <> 'raise')"), "IntegrityError: CHECK constraint failed"),
        ],
        ids=["handler", "both", "statement"],
    )
    async def test_names_the_event(self, tmp_path: Path, registry: Registry, cause: str) -> None:
        """The error names the stream and the cause, and the old rows stay."""
        history = [say(f"e-{number}", "raise" if number == 3 else "x") for number in range(9)]
        await project(tmp_path / "p.db", history, registry=notes(1))
        before = rows(tmp_path / "p.db", "SELECT * FROM notes")

        with pytest.raises(StoreUnusable, match="the stream of event 'e-") as refused:
            await rebuilt(tmp_path / "p.db", registry)

        assert cause in refused.value.message
        assert "'e-3'" in refused.value.message
        assert rows(tmp_path / "p.db", "SELECT * FROM notes") == before
        assert not (tmp_path / "p.db.rebuild").exists()

    async def test_names_the_kinds_that_nobody_handles(self, tmp_path: Path) -> None:
        """A newer release accepted their messages; the error comes before anything is folded."""
        await project(tmp_path / "p.db", [say("e-1")], registry=notes(1))

        with pytest.raises(StoreUnusable, match=r"does not know .*: said\)"):
            await rebuilt(tmp_path / "p.db", Registry())

        assert rows(tmp_path / "p.db", "SELECT * FROM notes") == [("e-1", "x")]

    async def test_names_the_event_whose_statement_waited(self, tmp_path: Path) -> None:
        """It does not name the next event, whose read makes the deferred statement run."""
        await project(tmp_path / "p.db", [say("e-1"), say("e-2", "raise")], registry=notes(1))
        await project(tmp_path / "p.db", [say("e-3")], registry=notes(1))
        registry = notes(1, check=" CHECK (text <> 'raise')")
        said = registry.handlers["said"]

        async def reads(tx: Transaction, message: Message[Said]) -> None:
            if message.event_id == "e-3":
                await tx.fetch_all("SELECT 1")
            await said(tx, message)

        registry.handlers["said"] = reads
        with pytest.raises(StoreUnusable, match="stream of event 'e-2'"):
            await rebuilt(tmp_path / "p.db", registry)

    async def test_names_the_first_that_fails(self, tmp_path: Path) -> None:
        """A failed statement counts, even if a later stream's handler raised before it ran."""
        history = [say("e-1"), say("e-2", "bad"), say("e-3", "raise")]
        await project(tmp_path / "p.db", history, registry=notes(1))

        with pytest.raises(StoreUnusable, match="stream of event 'e-2'"):
            await rebuilt(tmp_path / "p.db", notes(2, check=" CHECK (text <> 'bad')"))

    async def test_does_not_quote_the_message(self, tmp_path: Path) -> None:
        """A body that no longer fits its model is named but not printed."""
        await project(tmp_path / "p.db", [say("e", "s3cret")], registry=notes(1))
        change(tmp_path / "p.db", """UPDATE log SET body = replace(body, '"text"', '"t"')""")

        with pytest.raises(StoreUnusable, match="stream of event 'e'") as refused:
            await rebuilt(tmp_path / "p.db", notes(1))

        assert "Field required" in refused.value.message
        assert "s3cret" not in refused.value.message
