from pathlib import Path

import pytest

from tests.builders import planned, started
from tests.unit.projecting import project
from worker.store import log
from worker.store.connection import Reader, Writer
from worker.store.log import Entry
from worker.store.streams import FIND

AT = "2026-04-27T10:00:00.000000Z"
# What a list of ids must carry through JSON and back.
STRANGE = ("'", '"', "%", "\U0001f600", "a\nb", "[1]", "1", "null", "\\", "\x01", "\u2028", "é")


def entry(stream: int, message_id: str, sequence: int = 1, body: str = "{}", at: str = AT) -> Entry:
    return (stream, message_id, sequence, at, "event_planned", 0, AT, body)


class TestKnown:
    async def test_gives_the_bodies_of_those_in_the_log(self, tmp_path: Path) -> None:
        """An id is known within its stream, and nowhere else."""
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            log.append(tx, [entry(1, "m", body="1"), entry(2, "n", body="2")])

            known = await log.known(tx, [(1, "m"), (1, "n"), (2, "m"), (3, "m"), (2, "n")])

        assert known == {(1, "m"): "1", (2, "n"): "2"}

    async def test_takes_ids_of_any_characters(self, tmp_path: Path) -> None:
        """Ids are compared as text, byte by byte."""
        keys = {(number, other) for number in (1, 2**40) for other in STRANGE}
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            log.append(tx, [entry(*key, body=str(key)) for key in keys])

            known = await log.known(tx, [*keys, (1, "1.0"), (1, "E\u0301"), (3, "1")])

        assert known == {key: str(key) for key in keys}

    async def test_takes_any_number_of_them(self, tmp_path: Path) -> None:
        """A batch of any size is one query, and an empty one gives nothing."""
        entries = [entry(number, "m") for number in range(5_000)]
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            log.append(tx, entries)

            known = await log.known(
                tx, [(stream, message_id) for stream, message_id, *_ in entries]
            )

            assert len(known) == 5_000
            assert await log.known(tx, []) == {}

    async def test_is_found_by_the_key(self, tmp_path: Path) -> None:
        """Nothing that is done for a message grows with the log."""
        async with Writer(tmp_path / "p.db") as writer:
            for sql in (log.KNOWN, FIND, log.BODIES):
                plan = await writer.fetch_all(f"EXPLAIN QUERY PLAN {sql}", ("[]",))

                steps = [row["detail"] for row in plan]
                assert any("USING PRIMARY KEY" in step for step in steps)
                assert not any("SCAN log" in step or "SCAN streams" in step for step in steps)


class TestBodies:
    async def test_are_those_of_the_streams(self, tmp_path: Path) -> None:
        """Whole streams, and no others."""
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            log.append(tx, [entry(1, "m", body="1"), entry(1, "n", body="2")])
            log.append(tx, [entry(2, "m", body="3")])

            found = await log.bodies(tx, [1, 3])

            assert {stream: sorted(bodies) for stream, bodies in found.items()} == {1: ["1", "2"]}
            assert await log.bodies(tx, []) == {}


class TestHistory:
    async def test_is_in_the_order_of_position(self, tmp_path: Path) -> None:
        """What a person reads is what the handlers saw."""
        last = started("e", id="b", sequence=7, occurred_at="2026-04-27T10:00:00Z")
        history = [
            last,
            last | {"id": "a"},
            last | {"id": "z", "occurred_at": "2026-04-27T11:00:00+02:00"},
            planned("e", id="zz", sequence=0),
            planned("f"),
        ]
        await project(tmp_path / "p.db", history)

        async with Reader(tmp_path / "p.db") as reader:
            found = await log.history(reader, "e")

        assert [row["id"] for row in found] == ["zz", "z", "a", "b"]
        assert [row["is_late"] for row in found] == [1, 1, 1, 0]

    @pytest.mark.parametrize("event_id", ["", "e-2", "%"])
    async def test_of_an_unknown_event_is_empty(self, tmp_path: Path, event_id: str) -> None:
        """Nothing has been said about it."""
        await project(tmp_path / "p.db", [planned("e")])

        async with Reader(tmp_path / "p.db") as reader:
            assert await log.history(reader, event_id) == []
