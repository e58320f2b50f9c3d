from pathlib import Path
from random import Random

import pytest

from tests.builders import planned, started
from tests.unit.projecting import project
from worker.store import log
from worker.store.log import BEFORE_ALL, Entry, Position
from worker.store.sqlite import log as queries
from worker.store.sqlite.connection import Reader
from worker.store.sqlite.store import Writer
from worker.store.sqlite.streams import FIND

AT = "2026-04-27T10:00:00.000000Z"
# Characters that a list of ids must preserve through JSON.
STRANGE = ("'", '"', "%", "\U0001f600", "a\nb", "[1]", "1", "null", "\\", "\x01", "\u2028", "é")


def entry(stream: int, message_id: str, sequence: int = 1, body: str = "{}", at: str = AT) -> Entry:
    return (stream, message_id, sequence, at, "event_planned", 0, AT, body)


class TestKnown:
    async def test_gives_the_bodies_of_those_in_the_log(self, tmp_path: Path) -> None:
        """An id is known only within its stream."""
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            tx.append([entry(1, "m", body="1"), entry(2, "n", body="2")])

            known = await tx.known([(1, "m"), (1, "n"), (2, "m"), (3, "m"), (2, "n")])

        assert known == {(1, "m"): "1", (2, "n"): "2"}

    async def test_takes_ids_of_any_characters(self, tmp_path: Path) -> None:
        """Ids are compared as text, byte by byte."""
        keys = {(number, other) for number in (1, 2**40) for other in STRANGE}
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            tx.append([entry(*key, body=str(key)) for key in keys])

            known = await tx.known([*keys, (1, "1.0"), (1, "E\u0301"), (3, "1")])

        assert known == {key: str(key) for key in keys}

    async def test_takes_any_number_of_them(self, tmp_path: Path) -> None:
        """A batch of any size is one query, and an empty one finds nothing."""
        entries = [entry(number, "m") for number in range(5_000)]
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            tx.append(entries)

            known = await tx.known([(stream, message_id) for stream, message_id, *_ in entries])

            assert len(known) == 5_000
            assert await tx.known([]) == {}

    async def test_is_found_by_the_key(self, tmp_path: Path) -> None:
        """The cost of a message does not grow with the log."""
        async with Writer(tmp_path / "p.db") as writer:
            for sql, parameters in (
                (queries.KNOWN, ("[]",)),
                (FIND, ("[]",)),
                (queries.WANTED + queries.SIZES, ("[]", 0)),
                (queries.WANTED + queries.BODIES, ("[]",)),
                (queries.PLACES, (0, 1, *log.BEFORE_ALL, 1)),
                (queries.BODIES_BY_ID, (1, "[]")),
                (queries.HISTORY_BY_ID, (1, "[]")),
            ):
                plan = await writer.fetch_all(f"EXPLAIN QUERY PLAN {sql}", parameters)

                steps = [row["detail"] for row in plan]
                assert any("USING PRIMARY KEY" in step for step in steps)
                assert not any("SCAN log" in step or "SCAN streams" in step for step in steps)


async def read(source: log.Log, *starts: tuple[int, Position]) -> list[log.Piece]:
    return [piece async for piece in source.pieces(dict(starts))]


class TestPieces:
    async def test_hold_whole_streams_after_their_starts(self, tmp_path: Path) -> None:
        """Short streams share a piece; each begins after its start, and no others are read."""
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            tx.append([entry(1, "m", body="1"), entry(1, "n", body="2")])
            tx.append([entry(2, "m", body="3"), entry(3, "m", 7, body="4")])
            tx.append([entry(3, "a", 8, body="5"), entry(3, "z", 7, body="6")])

            (piece,) = await read(tx, (1, BEFORE_ALL), (3, (7, AT, "m")), (9, BEFORE_ALL))

            assert {stream: sorted(bodies) for stream, bodies in piece.items()} == {
                1: ["1", "2"],
                3: ["5", "6"],
            }
            assert await read(tx) == await read(tx, (2, (1, AT, "m"))) == []

    async def test_are_bounded_however_long_the_stream(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The parts of a long stream come in the order of position, beside whole short streams."""
        monkeypatch.setattr(log, "PLACES_AT_ONCE", 7)
        monkeypatch.setattr(log, "PIECE_SIZE", 3 * (log.MESSAGE_SIZE + 10))
        places = Random(1).sample(range(40), 40)
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            tx.append([entry(1, f"{n % 9}-{n}", n, body=f"{n}") for n in places])
            tx.append([entry(stream, "m", body="x") for stream in range(2, 9)])

            found = await read(tx, *((stream, BEFORE_ALL) for stream in range(9)))

        of_long = [piece[1] for piece in found if 1 in piece]
        assert [int(body) for bodies in of_long for body in bodies] == list(range(40))
        assert max(map(len, of_long)) == 3
        assert [len(piece) for piece in found if 1 not in piece] == [3, 3, 1]

    async def test_hold_one_message_that_is_too_large(self, tmp_path: Path) -> None:
        """A message that exceeds the bound of a piece comes alone."""
        large = "x" * log.PIECE_SIZE
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            tx.append([entry(1, f"{n}", n, body=large) for n in range(3)])
            tx.append([entry(1, "9", 9, body="9")])

            found = await read(tx, (1, BEFORE_ALL))

        assert [[len(body) for body in piece[1]] for piece in found] == [
            [len(large)], [len(large)], [len(large)], [1],
        ]  # fmt: skip


class TestHistory:
    async def test_is_in_the_order_of_position(self, tmp_path: Path) -> None:
        """People see the messages in the order in which the handlers saw them."""
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
            found = [row async for rows in reader.history("e") for row in rows]

        assert [row["id"] for row in found] == ["zz", "z", "a", "b"]
        assert [row["is_late"] for row in found] == [1, 1, 1, 0]

    @pytest.mark.parametrize("event_id", ["", "e-2", "%"])
    async def test_of_an_unknown_event_is_empty(self, tmp_path: Path, event_id: str) -> None:
        """The log has no messages of it."""
        await project(tmp_path / "p.db", [planned("e")])

        async with Reader(tmp_path / "p.db") as reader:
            assert [rows async for rows in reader.history(event_id)] == []
