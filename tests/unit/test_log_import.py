import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests import database
from tests.builders import Message, planned, started
from tests.cli.commands import run_command
from tests.histories import distinct, histories
from tests.oracle import COLUMNS, expected_rows
from tests.places import Place, change
from tests.unit.projecting import LOG, arrivals, project, projecting, rows, shipped
from worker.log_import import Account, import_log, prepare
from worker.reader import Reader
from worker.store import log as log_of_store
from worker.store.engines import store_of
from worker.store.log import Logged
from worker.store.sqlite.lock import WriterLock

TIMES = "SELECT id, appended_at FROM messages ORDER BY id"


def nothing(done: int, total: int) -> None:
    """Show no progress."""


async def imported(source: Place, target: Place) -> Account:
    """Import as the command does."""
    store = store_of(target)
    async with Reader(source) as reader:
        with store.lock() as lock:
            async with store.writer(lock) as writer:
                await prepare(writer, shipped())
                return await import_log(reader.database, writer, shipped(), nothing)


def events(place: Place) -> list[tuple[Any, ...]]:
    return rows(place, f"SELECT {', '.join(COLUMNS)} FROM events ORDER BY event_id")


@pytest.fixture
def source(tmp_path: Path) -> Place:
    return tmp_path / "source.db"


@pytest.fixture
def target(place: Place) -> Place:
    return place


class TestAnImport:
    @pytest.mark.parametrize("piece_size", [log_of_store.PIECE_SIZE, 9_000, 1])
    async def test_makes_the_rows_of_all_messages(
        self, source: Place, target: Place, monkeypatch: pytest.MonkeyPatch, piece_size: int
    ) -> None:
        """Whatever the target has already; run again, it changes nothing."""
        monkeypatch.setattr(log_of_store, "PIECE_SIZE", piece_size)
        rng = Random(7)
        messages = histories(rng, events=60)
        there, both = messages[: len(messages) // 2], messages[len(messages) // 3 :]
        await project(source, there)
        await project(target, both)
        before = len(rows(target, LOG))

        account = await imported(source, target)
        again = await imported(source, target)

        assert rows(target, LOG) == distinct([*both, *there]) == distinct(messages)
        assert events(target) == expected_rows(messages)
        assert account.added == len(rows(target, LOG)) - before
        assert account.verdicts.total() == len(rows(source, LOG)) == again.known
        assert (again.added, again.rejected, account.rejected) == (0, 0, 0)

    async def test_works_from_either_store(self, place: Place, tmp_path: Path) -> None:
        """Into a file, too: the way back."""
        messages = histories(Random(8), events=30)
        await project(place, messages)

        await imported(place, tmp_path / "back.db")

        assert rows(tmp_path / "back.db", LOG) == distinct(messages)
        assert events(tmp_path / "back.db") == expected_rows(messages)

    async def test_keeps_when_each_message_came(self, source: Place, target: Place) -> None:
        """By the clock of the source's worker."""
        async with projecting(source, clock=lambda: "2026-01-01T00:00:00.000000Z") as projector:
            await projector.project(arrivals([planned("a"), started("a")]))
        async with projecting(source, clock=lambda: "2026-01-02T00:00:00.000000Z") as projector:
            await projector.project(arrivals([planned("b")]))

        await imported(source, target)

        assert rows(target, TIMES) == rows(source, TIMES)

    async def test_that_was_interrupted_is_begun_again(self, source: Place, target: Place) -> None:
        """What it had committed stays."""
        messages = [planned(f"e-{number}") for number in range(1_500)]
        await project(source, messages)

        def interrupt(done: int, total: int) -> None:
            assert (done, total) == (1_000, 1_500)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            async with Reader(source) as reader, projecting(target) as projector:
                await import_log(reader.database, projector._writer, shipped(), interrupt)
        halfway = len(rows(target, LOG))
        account = await imported(source, target)

        assert halfway == account.known == 1_000
        assert account.added == 500
        assert events(target) == expected_rows(messages)

    async def test_brings_what_comes_meanwhile(
        self, source: Place, target: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The source's worker goes on, here with an event that was read past already."""
        first, second = planned("b"), planned("a")
        async with (
            projecting(source) as worker,
            Reader(source) as reader,
            projecting(target) as projector,
        ):
            await worker.project(arrivals([first]))
            pieces = reader.database.entries

            async def entries_then_another() -> AsyncIterator[list[Logged]]:
                async for piece in pieces():
                    yield piece
                await worker.project(arrivals([second]))

            monkeypatch.setattr(reader.database, "entries", entries_then_another)
            account = await import_log(reader.database, projector._writer, shipped(), nothing)

        assert (account.messages, account.added) == (1, 2)
        assert events(target) == expected_rows([first, second])

    async def test_names_what_the_target_rejects(self, source: Place, target: Place) -> None:
        """An id that it has with another content, and a kind that this release does not know."""
        here, there = planned("e", id="m-1"), planned("e", id="m-1", chat_id="other")
        await project(target, [here])
        await project(source, [there, planned("f", id="m-2")])
        change(source, "UPDATE log SET body = replace(body, 'event_planned', 'x') WHERE id = 'm-2'")

        account = await imported(source, target)

        assert (account.added, account.rejected) == (0, 2)
        found = [(o.event_id, o.rejected and o.rejected.reason) for o in account.rejections]
        assert found == [("e", "id_conflict"), ("f", "unknown_kind")]
        assert events(target) == expected_rows([here])

    async def test_into_rows_of_another_version_is_refused(
        self, source: Place, target: Place
    ) -> None:
        """A rebuild comes first."""
        await project(source, [planned("e")])
        await project(target, [planned("f")])
        change(target, "UPDATE projections SET version = 1")

        with pytest.raises(Exception, match="must be rebuilt first: events"):
            await imported(source, target)


class TestTheCommand:
    async def run(
        self, folder: Path, *arguments: str, messages: list[Message]
    ) -> tuple[int, str, str]:
        """Run the command in a folder whose source has these messages."""
        await project(folder / "source.db", messages)
        settings: dict[str, Any] = {"database": folder / "target.db", "secrets_dir": folder}
        return await run_command("import-log", *arguments, folder=folder, **settings)

    async def test_accounts_for_every_message(self, tmp_path: Path) -> None:
        """In a sentence, or as a document."""
        messages = [planned("e"), started("e")]

        first = await self.run(tmp_path, "source.db", messages=messages)
        _, out, _ = await self.run(tmp_path, "source.db", "--json", messages=[])

        assert first[0] == 0
        assert "Read 2 messages from source.db: 2 added, 0 known already, 0 rejected." in first[1]
        assert "target.db has every message of it." in first[1]
        assert json.loads(out) == {
            "source": "source.db", "target": str(tmp_path / "target.db"), "read": 2, "added": 0,
            "known": 2, "rejected": 0, "rejections": [],
        }  # fmt: skip

    async def test_fails_if_something_is_rejected(self, tmp_path: Path) -> None:
        """It lists the messages, and exits with 1."""
        await project(tmp_path / "target.db", [planned("e", id="m-1")])
        there = planned("e", id="m-1", chat_id="other")

        code, out, _ = await self.run(tmp_path, "source.db", messages=[there])

        assert code == 1
        assert "id_conflict" in out
        assert "1 rejected" in out
        assert "every message of it but those that were rejected." in out

    async def test_waits_for_no_worker_of_the_target(self, tmp_path: Path) -> None:
        """An SQLite file has one writer; the error says who that is."""
        with WriterLock(tmp_path / "target.db"):
            code, _, err = await self.run(tmp_path, "source.db", messages=[planned("e")])

        assert code == 1
        assert "is being written by another process" in err

    async def test_of_a_missing_source_makes_no_target(self, tmp_path: Path) -> None:
        """A mistyped name leaves nothing behind."""
        code, _, err = await self.run(tmp_path, "sauce.db", messages=[planned("e")])

        assert code == 1
        assert "There is no database" in err
        with pytest.raises(sqlite3.OperationalError):
            database.log(tmp_path / "target.db")

    async def test_takes_no_password_as_an_argument(self, tmp_path: Path) -> None:
        """Every user of the machine could read it; nor is it repeated."""
        secret = "-".join(["s3cret", "s3cret"])
        url = f"postgresql://worker:{secret}@localhost/chats"

        code, out, err = await self.run(tmp_path, url, messages=[planned("e")])

        assert code == 2
        assert "PGPASSWORD" in err
        assert secret not in out + err
