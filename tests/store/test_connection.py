import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import completed, planned
from tests.database import change
from tests.store.processes import line, process
from tests.unit.projecting import arrivals, project, projecting, rows
from worker.errors import StoreUnavailable, StoreUnusable
from worker.projections.events import get_event
from worker.reader import Reader
from worker.store.sqlite.checks import APPLICATION_ID
from worker.store.sqlite.store import Writer

WRITE_AND_WAIT = """
import asyncio, sys
from tests.builders import planned
from tests.unit.projecting import arrivals, projecting
from pathlib import Path
async def main():
    async with projecting(Path(sys.argv[1])) as projector:
        await projector.project(arrivals([planned("e")]))
        print("written", flush=True)
        sys.stdin.read()
asyncio.run(main())
"""
READ_AS_NOBODY = """
import asyncio, os, sys
from worker.projections.events import get_event
from worker.reader import Reader
async def main():
    async with Reader(sys.argv[1]) as reader:
        event = await get_event(reader, "e")
        print(event["status"], flush=True)
if os.getuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
asyncio.run(main())
"""


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def join_threads() -> None:
    """Wait for aiosqlite's thread to end; aiosqlite does not if it cannot connect."""
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            thread.join()


class TestWriter:
    @pytest.mark.parametrize(
        ("pragma", "value"),
        [
            ("journal_mode", "wal"), ("synchronous", 2), ("busy_timeout", 1_000),
            ("temp_store", 2), ("trusted_schema", 0), ("cache_size", -8 * 1024),
            ("journal_size_limit", 64 * 1024 * 1024), ("application_id", APPLICATION_ID),
            ("user_version", 2),
        ],
    )  # fmt: skip
    async def test_opens_with_what_is_promised(
        self, tmp_path: Path, pragma: str, value: str | int
    ) -> None:
        """This holds for a new file and for one that the worker created before."""
        for _ in range(2):
            async with Writer(tmp_path / "p.db") as writer:
                ((found,),) = await writer.fetch_all(f"PRAGMA {pragma}")

            assert found == value

    async def test_makes_the_file_in_a_folder_that_the_lock_has_made(self, tmp_path: Path) -> None:
        """A worker starts in an empty volume."""
        database = tmp_path / "a" / "b" / "p.db"

        await project(database, [planned("e")])

        assert len(rows(database)) == 1

    async def test_takes_an_empty_file(self, tmp_path: Path) -> None:
        """The file that a killed first start leaves behind is not another program's."""
        (tmp_path / "p.db").touch()

        await project(tmp_path / "p.db", [planned("e")])

        assert len(rows(tmp_path / "p.db")) == 1

    async def test_that_is_closed_says_so(self, tmp_path: Path) -> None:
        """Closing twice is harmless; using a closed file is an error with a clear message."""
        async with Writer(tmp_path / "p.db") as writer:
            await writer.close()
            await writer.close()

            with pytest.raises(StoreUnusable, match="is not open"):
                await writer.fetch_all("SELECT 1")

    @pytest.mark.parametrize("name", ["a b", "a?b=c", "a#b", "a%20b", "\U0001f600", "file:x"])
    async def test_and_reader_take_any_file_name(self, tmp_path: Path, name: str) -> None:
        """No part of a file name is interpreted as part of a URI."""
        await project(tmp_path / name, [planned("e")])

        async with Reader(tmp_path / name) as reader:
            assert await get_event(reader, "e") is not None
        assert (tmp_path / name).stat().st_size > 0

    async def test_that_cannot_open_may_try_again(self, tmp_path: Path) -> None:
        """A missing folder, such as that of a volume, may come back."""
        with pytest.raises(StoreUnavailable, match="cannot be opened"):
            async with Writer(tmp_path / "missing" / "p.db"):
                pass

        join_threads()

    async def test_tells_a_lock_from_a_file_that_is_not_ours(self, tmp_path: Path) -> None:
        """Another process's lock at the opening is temporary."""
        await project(tmp_path / "p.db", [planned("e")])
        change(tmp_path / "p.db", "PRAGMA journal_mode = DELETE")
        other = sqlite3.connect(tmp_path / "p.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")

        with pytest.raises(StoreUnavailable):
            async with Writer(tmp_path / "p.db"):
                pass
        other.close()


def newer(path: Path) -> None:
    change(path, f"PRAGMA application_id = {APPLICATION_ID}")
    change(path, "PRAGMA user_version = 3")


def foreign(path: Path) -> None:
    change(path, "CREATE TABLE theirs (a)")


def versioned(path: Path) -> None:
    change(path, "PRAGMA user_version = 1")


def text(path: Path) -> None:
    path.write_text("not a database, but long enough to be read as the header of one." * 99)


REFUSED = [
    (newer, "made by a newer worker"),
    (foreign, "is not a database of the worker"),
    (versioned, "is not a database of the worker"),
    (text, "not a database"),
]


class TestForeignFiles:
    @pytest.mark.parametrize("opened", [Writer, Reader])
    @pytest.mark.parametrize(("make", "sentence"), REFUSED)
    async def test_are_refused_and_left_alone(
        self, tmp_path: Path, opened: type[Writer | Reader], make: object, sentence: str
    ) -> None:
        """The error names the path, and not a single byte of the file changes."""
        assert callable(make)
        make(tmp_path / "p.db")
        before = (tmp_path / "p.db").read_bytes()

        with pytest.raises(StoreUnusable, match=sentence) as refused:
            async with opened(tmp_path / "p.db"):
                pass

        assert str(tmp_path / "p.db") in refused.value.message
        assert (tmp_path / "p.db").read_bytes() == before
        assert names(tmp_path) == ["p.db"]


class TestCheckpoints:
    async def test_are_rarer_in_bulk(self, tmp_path: Path) -> None:
        """Only transactions in bulk use the larger number of pages."""
        found = []
        async with Writer(tmp_path / "p.db") as writer:
            for in_bulk in (False, True, True, False):
                async with writer.transaction(in_bulk=in_bulk) as tx:
                    ((pages,),) = await tx.fetch_all("PRAGMA wal_autocheckpoint")
                    found.append(pages)

        assert found == [1_000, 16_000, 16_000, 1_000]


class TestReader:
    async def test_sees_the_last_commit_while_the_worker_writes(self, tmp_path: Path) -> None:
        """An uncommitted transaction is not visible and does not block."""
        async with projecting(tmp_path / "p.db") as projector, Reader(tmp_path / "p.db") as reader:
            await projector.project(arrivals([planned("e")]))
            async with projector._writer.transaction() as tx:
                tx.add("UPDATE events SET status = 'active'")
                await tx.flush()
                during = await get_event(reader, "e")
            after = await get_event(reader, "e")

        assert during is not None
        assert after is not None
        assert (during["status"], after["status"]) == ("planned", "active")

    async def test_works_when_the_worker_is_down(self, tmp_path: Path) -> None:
        """The reader works after the worker has closed the file, and when it has come back."""
        await project(tmp_path / "p.db", [planned("e")])

        async with Reader(tmp_path / "p.db") as reader:
            assert ((await get_event(reader, "e")) or {})["status"] == "planned"
            await project(tmp_path / "p.db", [completed("e")])
            assert ((await get_event(reader, "e")) or {})["status"] == "completed"

    async def test_works_when_the_worker_was_killed(self, tmp_path: Path) -> None:
        """Committed rows are in the WAL and are read from there."""
        with process(WRITE_AND_WAIT, tmp_path / "p.db") as worker:
            line(worker)
            worker.kill()
            worker.wait()
        assert (tmp_path / "p.db-wal").stat().st_size > 0

        async with Reader(tmp_path / "p.db") as reader:
            assert await get_event(reader, "e") is not None

    @pytest.mark.parametrize(
        "sql",
        ["DELETE FROM events", "DROP TABLE log", "CREATE TABLE t (a)", "PRAGMA user_version = 9",
         "INSERT INTO projections VALUES ('t', 1)"],
    )  # fmt: skip
    async def test_cannot_write(self, tmp_path: Path, sql: str) -> None:
        """SQLite refuses every statement that would change the file."""
        await project(tmp_path / "p.db", [planned("e")])

        async with Reader(tmp_path / "p.db") as reader:
            with pytest.raises(StoreUnavailable, match="readonly"):
                await reader.fetch_all(sql)

    async def test_makes_no_file(self, tmp_path: Path) -> None:
        """A wrong path is an error, not an empty database."""
        with pytest.raises(StoreUnusable, match="There is no database"):
            async with Reader(tmp_path / "p.db"):
                pass

        assert names(tmp_path) == []


@pytest.fixture
def readable() -> Iterator[Path]:
    """Yield a path in a folder that everybody may read, but only root as its owner may write."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name) / "p.db"


class TestReaderWithoutPermission:
    def test_to_write_in_the_folder_works_beside_a_worker(self, readable: Path) -> None:
        """Whoever may read the files can read the rows while the worker runs.

        The operator chose their mode by creating the file before the worker did.
        """
        readable.touch(0o644)
        with process(WRITE_AND_WAIT, readable) as worker:
            line(worker)
            if os.getuid():
                readable.parent.chmod(0o555)
            with process(READ_AS_NOBODY, readable) as reader:
                assert line(reader) == "planned"
            readable.parent.chmod(0o755)
