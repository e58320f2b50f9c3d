import asyncio
import shutil
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.builders import completed, planned, started
from tests.database import change
from tests.oracle import expected_rows
from tests.store.processes import line, process
from tests.unit.projecting import EVENTS, arrivals, audited, project, projecting, rows
from worker.errors import StoreUnavailable, StoreUnusable
from worker.history import history
from worker.projections import load
from worker.projections.events import get_event
from worker.projector import Projector
from worker.reader import Reader
from worker.rebuild import rebuild
from worker.store.sqlite import checks
from worker.store.sqlite.store import Writer

PAGE_BYTES = 4096
MESSAGES = [make(f"e-{number}") for number in range(30) for make in (planned, started)]
LONG = [planned(f"long-{n}", payload={"props": {"long": "x" * 6_000}}) for n in range(6)]


def spoil_page(database: Path, number: int) -> None:
    """Overwrite a page of the file, as a failing disk would."""
    with database.open("r+b") as file:
        file.seek((number - 1) * PAGE_BYTES)
        file.write(b"\xff" * PAGE_BYTES)


def root_of(database: Path, name: str) -> int:
    ((page,),) = rows(database, f"SELECT rootpage FROM sqlite_schema WHERE name = '{name}'")
    return int(page)


async def opened_by_a_writer(database: Path) -> None:
    async with Writer(database):
        pass


async def rebuilt(database: Path) -> None:
    async with Writer(database) as writer:
        await rebuild(writer, load(), lambda *_: None)


async def shown(database: Path) -> None:
    async with Reader(database) as reader:
        await get_event(reader, "e-1")
        await history(reader.database, load(), "e-1", limit=None)


def recovered(database: Path) -> str:
    """Return the output of .recover, or skip if this sqlite3 has no working .recover."""
    program = shutil.which("sqlite3") or pytest.skip("sqlite3 is not installed")
    shell = subprocess.run([program, database, ".recover"], capture_output=True, check=False)
    if shell.returncode:
        pytest.skip("this sqlite3 is built without .recover")
    return shell.stdout.decode()


Use = Callable[[Path], Awaitable[object]]


class TestADamagedFile:
    @pytest.mark.parametrize("use", [opened_by_a_writer, audited, rebuilt, shown])
    async def test_is_refused_with_a_way_out(self, tmp_path: Path, use: Use) -> None:
        """Every command that reads the broken page names the file and says what to do."""
        database = tmp_path / "p.db"
        await project(database, MESSAGES)
        spoil_page(database, root_of(database, "log"))

        with pytest.raises(StoreUnusable, match="is damaged") as refused:
            await use(database)

        assert str(database) in refused.value.message
        assert ".recover" in refused.value.hint

    async def test_is_found_while_it_is_open(self, tmp_path: Path) -> None:
        """Waiting repairs nothing, and no message is at fault."""
        database = tmp_path / "p.db"
        await project(database, MESSAGES)
        async with projecting(database) as projector:
            # A commit by another connection makes SQLite drop its cached pages.
            change(database, "UPDATE projections SET version = version + 0, table_name = 'events'")
            change(database, "PRAGMA user_version = 1")
            spoil_page(database, root_of(database, "log"))
            with pytest.raises(StoreUnavailable, match="Another connection"):
                await projector.project(arrivals([completed("e-1")]))

            with pytest.raises(StoreUnusable, match="is damaged"):
                await projector.project(arrivals([completed("e-1")]))

    async def test_that_is_too_large_to_be_read_at_the_start_is_refused_later(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The start checks a bounded amount; the rest is checked when it is used."""
        database = tmp_path / "p.db"
        await project(database, MESSAGES)
        spoil_page(database, root_of(database, "log"))
        monkeypatch.setattr(checks, "CHECKED_BYTES", 0)

        async with projecting(database) as projector:
            with pytest.raises(StoreUnusable, match="is damaged"):
                await projector.project(arrivals([completed("e-1")]))

    @pytest.mark.parametrize("use", [opened_by_a_writer, audited, rebuilt, shown])
    async def test_without_a_whole_header_is_not_ours(self, tmp_path: Path, use: Use) -> None:
        """Such a file could belong to any program."""
        await project(tmp_path / "p.db", MESSAGES)
        spoil_page(tmp_path / "p.db", 1)

        with pytest.raises(StoreUnusable, match=r"not a database of the worker .*p\.db"):
            await use(tmp_path / "p.db")

    @pytest.mark.parametrize("use", [audited, rebuilt, shown])
    async def test_that_lacks_a_table_is_refused(self, tmp_path: Path, use: Use) -> None:
        """Somebody changed the file, or it was never complete."""
        await project(tmp_path / "p.db", MESSAGES)
        change(tmp_path / "p.db", "DROP TABLE log")

        with pytest.raises(
            StoreUnusable, match=r"lacks what the query needs .*p\.db, no such table"
        ):
            await use(tmp_path / "p.db")

    async def test_can_be_salvaged_as_the_hint_says(self, tmp_path: Path) -> None:
        """A rebuild restores lost rows from the recovered log."""
        database, saved = tmp_path / "p.db", tmp_path / "saved.db"
        await project(database, MESSAGES)
        spoil_page(database, root_of(database, "events"))
        with closing(sqlite3.connect(saved)) as connection_to_saved:
            connection_to_saved.executescript(await asyncio.to_thread(recovered, database))

        await rebuilt(saved)

        assert rows(saved, EVENTS) == expected_rows(MESSAGES)


async def fits(projector: Projector) -> bool:
    """Try the long batch twice; return whether it was committed."""
    for _ in range(2):
        try:
            await projector.project(arrivals(LONG))
        except StoreUnavailable:
            pass
        else:
            return True
    return False


async def write_too_much(writer: Writer) -> None:
    """Act as a handler that replaces every error with one of its own."""
    async with writer.transaction() as tx, tx.savepoint():
        tx.add("CREATE TABLE t AS SELECT zeroblob(99999) AS large")
        try:
            await tx.flush()
        except StoreUnavailable:
            raise ValueError("the handler's own") from None


# SQLite enforces this limit. It cannot be raised again, so it needs a separate process.
WITHOUT_MEMORY = """
import asyncio, sys
from pathlib import Path
from tests.builders import planned
from tests.unit.projecting import arrivals, project, projecting
from worker.errors import StoreUnavailable

async def main(path):
    await project(path, [planned("before")])
    async with projecting(path) as projector:
        batch = [planned(f"e-{n}", payload={"props": {"long": "x" * 60000}}) for n in range(200)]
        batch = arrivals(batch)
        await projector._writer.fetch_all("PRAGMA hard_heap_limit = 400000")
        try:
            await projector.project(batch)
        except StoreUnavailable as error:
            print(error.message, flush=True)

asyncio.run(main(Path(sys.argv[1])))
"""


class TestNoMemory:
    def test_holds_the_batch(self, tmp_path: Path) -> None:
        """No message is at fault: nothing is dead-lettered, and the batch is tried again."""
        with process(WITHOUT_MEMORY, tmp_path / "p.db") as running:
            said = line(running)

        assert "out of memory" in said


class TestAFileThatMayNotGrow:
    async def test_holds_a_batch_as_a_whole_or_not_at_all(self, tmp_path: Path) -> None:
        """This holds whichever page is the first that does not fit."""
        database, failures = tmp_path / "p.db", 0
        await project(database, MESSAGES)
        async with projecting(database) as projector:
            writer = projector._writer
            ((pages,),) = await writer.fetch_all("PRAGMA page_count")
            await writer.fetch_all(f"PRAGMA max_page_count = {pages}")
            while not await fits(projector):
                assert rows(database) == expected_rows(MESSAGES)
                failures += 1
                await writer.fetch_all(f"PRAGMA max_page_count = {pages + failures}")

        assert failures > 5
        assert rows(database) == expected_rows([*MESSAGES, *LONG])
        assert rows(database, "PRAGMA integrity_check") == [("ok",)]

    async def test_is_blamed_whatever_a_handler_makes_of_it(self, tmp_path: Path) -> None:
        """A handler that catches the error cannot turn it into a fault of its message."""
        await project(tmp_path / "p.db", MESSAGES)
        async with Writer(tmp_path / "p.db") as writer:
            await writer.fetch_all("PRAGMA max_page_count = 1")

            with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
                await write_too_much(writer)
