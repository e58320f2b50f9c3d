from pathlib import Path

import pytest

from tests.store.test_log import AT, STRANGE, entry
from worker.store.sqlite import streams as module
from worker.store.sqlite.store import Writer
from worker.store.sqlite.streams import Streams
from worker.store.streams import Stream

LATER = "2026-04-27T10:00:00.000001Z"


class TestStreams:
    async def test_are_numbered_as_they_appear(self, tmp_path: Path) -> None:
        """This also holds for a connection that has never seen the existing streams."""
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            streams = Streams()
            first = await streams.of(tx, ["z", "a"])
            then = await streams.of(tx, ["m"])
            last = await Streams().of(tx, ["b", "a"])

        assert first == {"z": Stream(1, None), "a": Stream(2, None)}
        assert then == {"m": Stream(3, None)}
        assert last == {"a": Stream(2, None), "b": Stream(4, None)}

    async def test_have_their_greatest_position_as_head(self, tmp_path: Path) -> None:
        """Positions are compared by sequence, then time, then id."""
        entries = [
            entry(1, "z", 1, at=LATER),
            entry(1, "a", 2),
            entry(2, "z", 2**63 - 1),
            entry(2, "a", 2**63 - 1, at=LATER),
            entry(3, "a", 0),
            entry(3, "b", 0),
        ]
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            await Streams().of(tx, ["e", "f", "g"])
            tx.append(entries)

            found = await Streams().of(tx, ["e", "f", "g"])

        assert found == {
            "e": Stream(1, (2, AT, "a")),
            "f": Stream(2, (2**63 - 1, LATER, "a")),
            "g": Stream(3, (0, AT, "b")),
        }

    async def test_may_have_any_names(self, tmp_path: Path) -> None:
        """Names are compared as text, byte by byte."""
        names = [*STRANGE, "E\u0301", "1.0"]
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            opened = await Streams().of(tx, names)

            assert await Streams().of(tx, names) == opened
            assert len({stream.key for stream in opened.values()}) == len(names)

    async def test_are_not_asked_for_twice(self, tmp_path: Path) -> None:
        """What was remembered at the last commit is returned without reading the log."""
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            streams = Streams()
            streams.remember({"e": Stream(9, (7, AT, "m"))})

            assert await streams.of(tx, ["e"]) == {"e": Stream(9, (7, AT, "m"))}

    async def test_are_forgotten_when_there_are_too_many(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The least recently used are forgotten first; the log still knows them."""
        monkeypatch.setattr(module, "REMEMBERED", 2)
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            await Streams().of(tx, ["e", "f"])
            tx.append([entry(1, "m", 1), entry(2, "m", 2)])
            streams = Streams()
            streams.remember({"e": Stream(1, (10, AT, "n")), "f": Stream(2, (20, AT, "n"))})
            await streams.of(tx, ["e"])
            streams.remember({"g": Stream(3, (30, AT, "n"))})

            found = await streams.of(tx, ["e", "f", "g"])

        assert found == {
            "e": Stream(1, (10, AT, "n")),
            "f": Stream(2, (2, AT, "m")),
            "g": Stream(3, (30, AT, "n")),
        }
