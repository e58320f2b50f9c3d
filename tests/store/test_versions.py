from typing import Any

import pytest

from tests.builders import Message as Wire
from tests.builders import message
from tests.places import Place, change, writer_at
from tests.store.contents import leftovers, tables
from tests.unit.projecting import audited, project, rows
from worker import Message, Payload, Transaction
from worker.errors import StoreUnusable
from worker.rebuild import create_tables, reason_to_rebuild, rebuild
from worker.registry import Registry


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
        sql = f"""
            INSERT INTO notes VALUES (:e, :text{more})
            ON CONFLICT (event_id) DO UPDATE SET text = :text
        """
        await tx.execute(sql, values)

    return registry


def say(event_id: str, text: str = "x", **more: Any) -> Wire:
    return message("said", {"event_id": event_id, "text": text, **more})


async def rebuilt(place: Place, registry: Registry) -> None:
    async with writer_at(place) as writer:
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

    async def test_is_gone_after_the_rebuild(self, place: Place) -> None:
        """The file notes the versions that folded its rows."""
        await project(place, [say("e")], registry=notes(1))

        async with writer_at(place) as writer:
            before = reason_to_rebuild(await writer.noted_versions(), notes(2))
            await rebuild(writer, notes(2), lambda done, total: None)
            after = reason_to_rebuild(await writer.noted_versions(), notes(2))

        assert (before is None, after) == (False, None)

    async def test_is_none_for_a_new_file(self, place: Place) -> None:
        """The empty tables of a new file have the versions of this worker."""
        async with writer_at(place) as writer:
            assert await writer.noted_versions() == {}
            await create_tables(writer, notes(2))

            assert await writer.noted_versions() == {"notes": 2}


class TestChangedTable:
    async def test_is_replaced(self, place: Place) -> None:
        """After the rebuild every row has the new column, filled from the log."""
        await project(place, [say("e"), say("f")], registry=notes(1))

        await rebuilt(place, notes(2, column="more"))

        assert rows(place, "SELECT event_id, text, more FROM notes") == [
            ("e", "x", 2), ("f", "x", 2),
        ]  # fmt: skip

    async def test_counts_every_row_as_differing(self, place: Place) -> None:
        """Rows with different columns are never equal."""
        await project(place, [say("e"), say("f")], registry=notes(1))

        found = await audited(place, notes(2, column="more"))

        assert (found.rows, found.differing) == (2, 2)
        assert found.differences[0].live == {"event_id": "e", "text": "x"}
        assert found.differences[0].folded == {"event_id": "e", "text": "x", "more": 2}

    async def test_that_is_gone_is_dropped(self, place: Place) -> None:
        """A table without a projection would stay stale forever."""
        both = notes(1)
        both.projection(table="gone", version=1, schema=("CREATE TABLE gone (event_id TEXT)",))
        await project(place, [say("e")], registry=both)

        await rebuilt(place, notes(1))

        assert {"notes", "gone"} & tables(place) == {"notes"}
        assert rows(place, "SELECT * FROM projections") == [("notes", 1)]

    async def test_that_is_new_is_filled(self, place: Place) -> None:
        """A new projection gets the whole history."""
        await project(place, [say("e")], registry=notes(1))
        change(place, "DROP TABLE notes")

        await rebuilt(place, notes(1))

        assert rows(place, "SELECT * FROM notes") == [("e", "x")]


class TestLogThatCannotBeFolded:
    @pytest.mark.parametrize(
        ("registry", "cause"),
        [
            (notes(2), "ValueError: no longer understood"),
            (notes(2, check=" CHECK (text <> 'raise')"), "no longer understood"),
            (notes(1, check=" CHECK (text <> 'raise')"), "check constraint"),
        ],
        ids=["handler", "both", "statement"],
    )
    async def test_names_the_event(self, place: Place, registry: Registry, cause: str) -> None:
        """The error names the stream and the cause, and the old rows stay."""
        history = [say(f"e-{number}", "raise" if number == 3 else "x") for number in range(9)]
        await project(place, history, registry=notes(1))
        before = rows(place, "SELECT * FROM notes")

        with pytest.raises(StoreUnusable, match="the stream of event 'e-") as refused:
            await rebuilt(place, registry)

        assert cause in refused.value.message.replace("CHECK", "check")
        assert "'e-3'" in refused.value.message
        assert rows(place, "SELECT * FROM notes") == before
        assert not leftovers(place)

    async def test_names_the_kinds_that_nobody_handles(self, place: Place) -> None:
        """A newer release accepted their messages; the error comes before anything is folded."""
        await project(place, [say("e-1")], registry=notes(1))

        with pytest.raises(StoreUnusable, match=r"does not know .*: said\)"):
            await rebuilt(place, Registry())

        assert rows(place, "SELECT * FROM notes") == [("e-1", "x")]

    async def test_names_the_event_whose_statement_waited(self, place: Place) -> None:
        """It does not name the next event, whose read makes the deferred statement run."""
        await project(place, [say("e-1"), say("e-2", "raise")], registry=notes(1))
        await project(place, [say("e-3")], registry=notes(1))
        registry = notes(1, check=" CHECK (text <> 'raise')")
        said = registry.handlers["said"]

        async def reads(tx: Transaction, message: Message[Said]) -> None:
            if message.event_id == "e-3":
                await tx.fetch_all("SELECT 1")
            await said(tx, message)

        registry.handlers["said"] = reads
        with pytest.raises(StoreUnusable, match="stream of event 'e-2'"):
            await rebuilt(place, registry)

    async def test_names_the_first_that_fails(self, place: Place) -> None:
        """A failed statement counts, even if a later stream's handler raised before it ran."""
        history = [say("e-1"), say("e-2", "bad"), say("e-3", "raise")]
        await project(place, history, registry=notes(1))

        with pytest.raises(StoreUnusable, match="stream of event 'e-2'"):
            await rebuilt(place, notes(2, check=" CHECK (text <> 'bad')"))

    async def test_does_not_quote_the_message(self, place: Place) -> None:
        """A body that no longer fits its model is named but not printed."""
        await project(place, [say("e", "s3cret")], registry=notes(1))
        change(place, """UPDATE log SET body = replace(body, '"text"', '"t"')""")

        with pytest.raises(StoreUnusable, match="stream of event 'e'") as refused:
            await rebuilt(place, notes(1))

        assert "Field required" in refused.value.message
        assert "s3cret" not in refused.value.message
