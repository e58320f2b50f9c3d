from random import Random

import pytest

from tests.builders import planned, started
from tests.places import Place, reader_at, writer_at
from tests.unit.projecting import project
from worker.store import log
from worker.store.log import BEFORE_ALL, Entry, Key, Position
from worker.store.transaction import StoreTransaction

AT = "2026-04-27T10:00:00.000000Z"
# Characters that a list of ids must preserve through JSON.
STRANGE = ("'", '"', "%", "\U0001f600", "a\nb", "[1]", "1", "null", "\\", "\x01", "\u2028", "é")


def entry(stream: Key, message_id: str, sequence: int = 1, body: str = "{}", at: str = AT) -> Entry:
    return (stream, message_id, sequence, at, "event_planned", 0, AT, body)


async def keys_of(tx: StoreTransaction, *event_ids: str) -> list[Key]:
    """Lock and open streams; return their keys, and one that no stream has."""
    await tx.lock(event_ids, {})
    streams = await tx.streams(event_ids)
    keys: list[Key] = [streams[event_id].key for event_id in event_ids]
    return [*keys, "nobody" if isinstance(keys[0], str) else 2**40]


class TestKnown:
    async def test_gives_the_bodies_of_those_in_the_log(self, place: Place) -> None:
        """An id is known only within its stream."""
        async with writer_at(place) as writer, writer.transaction() as tx:
            e, f, none = await keys_of(tx, "e", "f")
            tx.append([entry(e, "m", body="1"), entry(f, "n", body="2")])

            known = await tx.known([(e, "m"), (e, "n"), (f, "m"), (none, "m"), (f, "n")])

        assert known == {(e, "m"): "1", (f, "n"): "2"}

    async def test_takes_ids_of_any_characters(self, place: Place) -> None:
        """Ids are compared as text, byte by byte."""
        async with writer_at(place) as writer, writer.transaction() as tx:
            *streams, none = await keys_of(tx, "e", *STRANGE)
            keys = {(stream, other) for stream in streams for other in STRANGE}
            tx.append([entry(*key, body=str(key)) for key in keys])

            e = streams[0]
            known = await tx.known([*keys, (e, "1.0"), (e, "E\u0301"), (none, "1")])

        assert known == {key: str(key) for key in keys}

    async def test_takes_any_number_of_them(self, place: Place) -> None:
        """A batch of any size is one query, and an empty one finds nothing."""
        async with writer_at(place) as writer, writer.transaction() as tx:
            *keys, _ = await keys_of(tx, *(f"e-{number}" for number in range(5_000)))
            entries = [entry(key, "m") for key in keys]
            tx.append(entries)

            known = await tx.known([(stream, message_id) for stream, message_id, *_ in entries])

            assert len(known) == 5_000
            assert await tx.known([]) == {}


async def read(source: log.Log, *starts: tuple[Key, Position]) -> list[log.Piece]:
    return [piece async for piece in source.pieces(dict(starts))]


class TestMessages:
    async def test_are_those_of_all_streams(self, place: Place) -> None:
        """A duplicate, and a message that is rejected, are none."""
        async with writer_at(place) as writer:
            assert await writer.messages() == 0
        batch = [planned("e"), started("e"), planned("f")]
        await project(place, [*batch, batch[0], b"{}"])

        async with reader_at(place) as reader:
            assert await reader.messages() == 3


class TestPieces:
    async def test_hold_whole_streams_after_their_starts(self, place: Place) -> None:
        """Short streams share a piece; each begins after its start, and no others are read."""
        async with writer_at(place) as writer, writer.transaction() as tx:
            e, f, g, none = await keys_of(tx, "e", "f", "g")
            tx.append([entry(e, "m", body="1"), entry(e, "n", body="2")])
            tx.append([entry(f, "m", body="3"), entry(g, "m", 7, body="4")])
            tx.append([entry(g, "a", 8, body="5"), entry(g, "z", 7, body="6")])

            (piece,) = await read(tx, (e, BEFORE_ALL), (g, (7, AT, "m")), (none, BEFORE_ALL))

            assert {stream: sorted(bodies) for stream, bodies in piece.items()} == {
                e: ["1", "2"],
                g: ["5", "6"],
            }
            assert await read(tx) == await read(tx, (f, (1, AT, "m"))) == []

    async def test_are_bounded_however_long_the_stream(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The parts of a long stream come in the order of position, beside whole short streams."""
        monkeypatch.setattr(log, "PLACES_AT_ONCE", 7)
        monkeypatch.setattr(log, "PIECE_SIZE", 3 * (log.MESSAGE_SIZE + 10))
        places = Random(1).sample(range(40), 40)
        async with writer_at(place) as writer, writer.transaction() as tx:
            long, *others, none = await keys_of(tx, *"abcdefgh")
            tx.append([entry(long, f"{n % 9}-{n}", n, body=f"{n}") for n in places])
            tx.append([entry(stream, "m", body="x") for stream in others])

            wanted = [none, long, *others]
            found = await read(tx, *((stream, BEFORE_ALL) for stream in wanted))

        of_long = [piece[long] for piece in found if long in piece]
        assert [n for bodies in of_long for n in sorted(map(int, bodies))] == list(range(40))
        assert max(map(len, of_long)) == 3
        assert [len(piece) for piece in found if long not in piece] == [3, 3, 1]

    async def test_hold_one_message_that_is_too_large(self, place: Place) -> None:
        """A message that exceeds the bound of a piece comes alone."""
        large = "x" * log.PIECE_SIZE
        async with writer_at(place) as writer, writer.transaction() as tx:
            e, _ = await keys_of(tx, "e")
            tx.append([entry(e, f"{n}", n, body=large) for n in range(3)])
            tx.append([entry(e, "9", 9, body="9")])

            found = await read(tx, (e, BEFORE_ALL))

        assert [[len(body) for body in piece[e]] for piece in found] == [
            [len(large)], [len(large)], [len(large)], [1],
        ]  # fmt: skip


class TestHistory:
    async def test_is_in_the_order_of_position(self, place: Place) -> None:
        """People see the messages in the order in which the handlers saw them."""
        last = started("e", id="b", sequence=7, occurred_at="2026-04-27T10:00:00Z")
        history = [
            last,
            last | {"id": "a"},
            last | {"id": "z", "occurred_at": "2026-04-27T11:00:00+02:00"},
            planned("e", id="zz", sequence=0),
            planned("f"),
        ]
        await project(place, history)

        async with reader_at(place) as reader:
            found = [row async for rows in reader.history("e") for row in rows]

        assert [row["id"] for row in found] == ["zz", "z", "a", "b"]
        assert [row["is_late"] for row in found] == [1, 1, 1, 0]

    @pytest.mark.parametrize("event_id", ["", "e-2", "%"])
    async def test_of_an_unknown_event_is_empty(self, place: Place, event_id: str) -> None:
        """The log has no messages of it."""
        await project(place, [planned("e")])

        async with reader_at(place) as reader:
            assert [rows async for rows in reader.history(event_id)] == []
