import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.places import change
from tests.store.processes import line, process
from tests.store.test_rebuild import TAMPER, history, rebuilt
from tests.unit.projecting import EVENTS, audited, project, rows

# Prints its progress and waits for a line, or kills itself before a statement.
REBUILD = """
import asyncio, logging, os, signal, sys
from pathlib import Path
from worker.projections import load
from worker.rebuild import rebuild
from worker.store.sqlite.store import SqliteStore, Writer
path, deadly = Path(sys.argv[1]), sys.argv[2]
class Kill(logging.Handler):
    def emit(self, record):
        if record.msg.startswith("executing") and deadly in record.getMessage():
            os.kill(os.getpid(), signal.SIGKILL)
def progress(done, total):
    if not deadly:
        print(done, flush=True)
        sys.stdin.readline()
if deadly:
    logging.getLogger("aiosqlite").setLevel(logging.DEBUG)
    logging.getLogger("aiosqlite").addHandler(Kill())
async def main():
    async with Writer(path) as writer:
        await rebuild(writer, load(), progress)
asyncio.run(main())
"""


class TestReaders:
    async def test_that_are_open_do_not_stop_it(self, tmp_path: Path) -> None:
        """A reader keeps its snapshot of the old table although the table is dropped."""
        await project(tmp_path / "p.db", history())
        change(tmp_path / "p.db", TAMPER)
        before = rows(tmp_path / "p.db")

        with closing(sqlite3.connect(tmp_path / "p.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute(EVENTS).fetchall()
            await rebuilt(tmp_path / "p.db")

            assert reader.execute(EVENTS).fetchall() == before
            reader.execute("COMMIT")
            assert reader.execute(EVENTS).fetchall() != before


class TestKill:
    async def test_in_the_middle_leaves_the_old_rows(self, tmp_path: Path) -> None:
        """The next rebuild removes the leftovers and succeeds."""
        await project(tmp_path / "p.db", history(1_500))
        change(tmp_path / "p.db", TAMPER)
        before = rows(tmp_path / "p.db")

        with process(REBUILD, tmp_path / "p.db", "") as rebuilding:
            assert 0 < int(line(rebuilding)) < 4_502
            rebuilding.kill()
        assert (tmp_path / "p.db.rebuild").exists()
        after = rows(tmp_path / "p.db")
        found = await rebuilt(tmp_path / "p.db")

        assert after == before
        assert found.differing == 1
        assert not (tmp_path / "p.db.rebuild").exists()

    @pytest.mark.parametrize(
        "statement",
        ["ATTACH DATABASE ? AS fresh", "DROP TABLE IF EXISTS main.events", "CREATE TABLE events",
         "CREATE INDEX", "INSERT INTO main.events", "DELETE FROM projections",
         "INSERT INTO projections", "COMMIT"],
    )  # fmt: skip
    async def test_before_a_statement_of_the_swap_leaves_the_old_rows(
        self, tmp_path: Path, statement: str
    ) -> None:
        """The swap is one transaction: the tables are the old or the new ones, never a mixture."""
        await project(tmp_path / "p.db", history())
        change(tmp_path / "p.db", TAMPER)
        before = rows(tmp_path / "p.db")

        with process(REBUILD, tmp_path / "p.db", statement) as rebuilding:
            assert rebuilding.wait() == -9
        after = rows(tmp_path / "p.db")
        found = await rebuilt(tmp_path / "p.db")

        assert after == before
        assert found.differing == 1
        assert (await audited(tmp_path / "p.db")).differing == 0
