from pathlib import Path

import pytest

from tests.store.test_log import STRANGE, entry
from worker.store import heads as module
from worker.store import log
from worker.store.connection import Writer
from worker.store.heads import Heads

AT, LATER = "2026-04-27T10:00:00.000000Z", "2026-04-27T10:00:00.000001Z"


class TestHeads:
    async def test_are_the_greatest_positions_of_the_log(self, tmp_path: Path) -> None:
        """By sequence, then time, then id; a stream without a message has none."""
        entries = [
            entry("e", "z", 1)._replace(occurred_at=LATER),
            entry("e", "a", 2),
            entry("f", "z", 2**63 - 1),
            entry("f", "a", 2**63 - 1)._replace(occurred_at=LATER),
            entry("g", "a", 0),
            entry("g", "b", 0),
        ]
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            await log.append(tx, entries)

            found = await Heads().of(tx, ["e", "f", "g", "h"])

        assert found == {"e": (2, AT, "a"), "f": (2**63 - 1, LATER, "a"), "g": (0, AT, "b")}

    async def test_of_streams_with_any_names(self, tmp_path: Path) -> None:
        """Names are compared as text, byte by byte."""
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            await log.append(tx, [entry(name, name) for name in STRANGE])

            found = await Heads().of(tx, [*STRANGE, "E\u0301", "1.0"])

        assert found == {name: (1, AT, name) for name in STRANGE}

    async def test_are_not_asked_for_twice(self, tmp_path: Path) -> None:
        """What was noted at the last commit is given without the log."""
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            heads = Heads()
            heads.remember({"e": (7, AT, "m")})

            assert await heads.of(tx, ["e"]) == {"e": (7, AT, "m")}

    async def test_are_forgotten_when_there_are_too_many(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those first for which nobody has asked longest; the log still knows them."""
        monkeypatch.setattr(module, "REMEMBERED", 2)
        async with Writer(tmp_path / "p.db") as writer, writer.transaction() as tx:
            await log.append(tx, [entry("e", "m", 1), entry("f", "m", 2)])
            heads = Heads()
            heads.remember({"e": (10, AT, "n"), "f": (20, AT, "n")})
            await heads.of(tx, ["e"])
            heads.remember({"g": (30, AT, "n")})

            found = await heads.of(tx, ["e", "f", "g"])

        assert found == {"e": (10, AT, "n"), "f": (2, AT, "m"), "g": (30, AT, "n")}
