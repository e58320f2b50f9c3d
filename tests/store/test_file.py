import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import planned
from tests.unit.projecting import arrivals, audited, project, projecting, rows
from worker.errors import StoreUnavailable, StoreUnusable
from worker.projections import load
from worker.rebuild import rebuild
from worker.store.sqlite.inspection import wal_bytes
from worker.store.sqlite.lock import WriterLock
from worker.store.sqlite.store import Writer


def modes(folder: Path) -> dict[str, str]:
    return {each.name: oct(each.stat().st_mode & 0o777) for each in folder.iterdir()}


class TestNewFiles:
    async def test_are_for_the_worker_alone(self, tmp_path: Path) -> None:
        """All of them contain what people said, before and during a rebuild."""
        database, seen = tmp_path / "new" / "p.db", {}
        await project(database, [planned("e")])
        with WriterLock(database) as lock:
            async with Writer(database, lock) as writer:
                await rebuild(writer, load(), lambda *_: seen.update(modes(tmp_path / "new")))

        assert oct((tmp_path / "new").stat().st_mode & 0o777) == "0o700"
        names = ("p.db", "p.db-wal", "p.db-shm", "p.db.lock", "p.db.rebuild")
        assert seen == dict.fromkeys(names, "0o600")

    async def test_take_the_mode_that_the_operator_gave_the_database(self, tmp_path: Path) -> None:
        """An existing file keeps its mode, and SQLite's companion files adopt it."""
        (folder := tmp_path / "theirs").mkdir(0o755)
        (database := folder / "p.db").touch()
        database.chmod(0o640)

        async with projecting(database) as projector:
            await projector.project(arrivals([planned("e")]))
            seen = modes(folder)

        assert seen.pop("p.db.lock") == "0o600"
        assert seen == dict.fromkeys(("p.db", "p.db-wal", "p.db-shm"), "0o640")
        assert modes(tmp_path) == {"theirs": "0o755"}


def delete(database: Path) -> None:
    database.unlink()


def move(database: Path) -> None:
    database.rename(database.with_name("moved.db"))


def replace(database: Path) -> None:
    shutil.copy(database, database.with_name("copy.db"))
    database.with_name("copy.db").replace(database)


async def commit_after(writer: Writer, remove: Callable[[], None]) -> None:
    async with writer.transaction() as tx:
        tx.add("DELETE FROM events")
        remove()


@pytest.mark.parametrize("remove", [delete, move, replace])
class TestAFileThatIsNoLongerInItsPlace:
    async def test_takes_no_more_batches(
        self, tmp_path: Path, remove: Callable[[Path], None]
    ) -> None:
        """A commit to a file without a name would be lost when the process ends."""
        async with projecting(tmp_path / "p.db") as projector:
            await projector.project(arrivals([planned("e-1")]))
            await asyncio.to_thread(remove, tmp_path / "p.db")

            with pytest.raises(StoreUnusable, match="deleted, moved or replaced") as refused:
                await projector.project(arrivals([planned("e-2")]))

        assert str(tmp_path / "p.db") in refused.value.message
        assert (tmp_path / "p.db").exists() == (remove is replace)

    async def test_does_not_count_as_committed(
        self, tmp_path: Path, remove: Callable[[Path], None]
    ) -> None:
        """A batch gets no ack if the file is removed while it is being written."""
        async with projecting(tmp_path / "p.db"), Writer(tmp_path / "p.db") as writer:
            with pytest.raises(StoreUnusable, match="deleted, moved or replaced"):
                await commit_after(writer, lambda: remove(tmp_path / "p.db"))


class TestProbe:
    async def test_commits_and_changes_nothing(self, tmp_path: Path) -> None:
        """Each probe writes a page to the WAL, which is the proof."""
        await project(tmp_path / "p.db", [planned("e")])
        async with Writer(tmp_path / "p.db") as writer:
            before, wals = rows(tmp_path / "p.db"), set()
            for _ in range(3):
                await writer.probe()
                wals.add((tmp_path / "p.db-wal").read_bytes())

        assert len(wals) == 3
        assert rows(tmp_path / "p.db") == before
        assert rows(tmp_path / "p.db", "PRAGMA user_version") == [(2,)]

    async def test_fails_as_a_batch_would(self, tmp_path: Path) -> None:
        """It works again once the obstacle is gone."""
        async with Writer(tmp_path / "p.db") as writer:
            other = sqlite3.connect(tmp_path / "p.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
                await writer.probe()
            other.close()
            await writer.probe()


def spoil_byte(file: Path, place: int) -> None:
    """Change one byte, counted from the end if the place is negative."""
    content = bytearray(file.read_bytes())
    content[place] ^= 0xFF
    file.write_bytes(content)


class TestTheWAL:
    async def test_that_is_found_is_brought_into_the_file(self, tmp_path: Path) -> None:
        """It may never have been synced, and a batch of duplicates would sync nothing."""
        (tmp_path / "killed").mkdir()
        async with projecting(tmp_path / "p.db") as projector:
            await projector.project(arrivals([planned("e")]))
            for name in ("p.db", "p.db-wal"):
                shutil.copy(tmp_path / name, tmp_path / "killed" / name)

        async with Writer(tmp_path / "killed" / "p.db"):
            shutil.copy(tmp_path / "killed" / "p.db", tmp_path / "without-wal.db")

        assert len(rows(tmp_path / "without-wal.db")) == 1

    async def test_that_is_damaged_ends_where_the_damage_begins(self, tmp_path: Path) -> None:
        """SQLite takes it for a torn write: whole batches remain, and they fold."""
        (folder := tmp_path / "killed").mkdir()
        batches = [[planned(f"e-{number}")] for number in range(5)]
        async with projecting(tmp_path / "p.db") as projector:
            for batch in batches:
                await projector.project(arrivals(batch))
            for name in ("p.db", "p.db-wal"):
                shutil.copy(tmp_path / name, folder / name)
        spoil_byte(folder / "p.db-wal", -5 * 4096)

        found = await audited(folder / "p.db")
        await project(folder / "p.db", *batches)

        assert 0 < found.messages < len(batches)
        assert (found.differing, found.rows) == (0, found.messages)
        assert rows(folder / "p.db") == rows(tmp_path / "p.db")

    async def test_has_a_size(self, tmp_path: Path) -> None:
        """A worker that stops leaves an empty WAL."""
        async with projecting(tmp_path / "p.db") as projector:
            await projector.project(arrivals([planned("e")]))
            size = (tmp_path / "p.db-wal").stat().st_size

            assert wal_bytes(tmp_path / "p.db") == size > 0

        assert wal_bytes(tmp_path / "p.db") == 0


class TestAKilledRebuild:
    async def test_leaves_nothing_after_the_next_opening(self, tmp_path: Path) -> None:
        """This holds even if the next start needs no rebuild."""
        await project(tmp_path / "p.db", [planned("e")])
        (tmp_path / "p.db.rebuild").write_bytes(b"x" * 99)

        async with Writer(tmp_path / "p.db"):
            assert not (tmp_path / "p.db.rebuild").exists()
