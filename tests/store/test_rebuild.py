import sqlite3
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.builders import Message, completed, planned, reverted, started
from tests.database import change
from tests.oracle import expected_rows
from tests.store.processes import line, process
from tests.unit.projecting import EVENTS, audited, project, rows
from worker.projections import load
from worker.rebuild import Audit, Progress, audit, rebuild
from worker.registry import Registry
from worker.store.sqlite.store import SqliteStore, Writer

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
GHOST = """
    INSERT OR IGNORE INTO events
    SELECT 'ghost', chat_id, kind, status, props_json, null, null, null, created_at, updated_at
    FROM events WHERE event_id = 'e-00000'
"""
TAMPER = "UPDATE events SET status = 'tampered' WHERE event_id = 'e-00003'"


def history(events: int = 10) -> list[Message]:
    """Return the messages of events in several statuses, some late and one an orphan."""
    ids = [f"e-{number:05}" for number in range(events)]
    lives = [[started(e, sequence=2), planned(e, sequence=1), completed(e)] for e in ids]
    return [*chain(*lives), reverted(ids[0], "active"), started("orphan")]


async def rebuilt(path: Path, registry: Registry | None = None, **more: Any) -> Audit:
    progress: Progress = more.pop("progress", lambda done, total: None)
    async with Writer(path) as writer:
        return await rebuild(writer, registry or load(), progress, **more)


class TestRebuild:
    async def test_gives_the_rows_that_there_were(self, tmp_path: Path) -> None:
        """Live or rebuilt, the rows are the same bytes, and the file works as before."""
        await project(tmp_path / "p.db", history())
        before = rows(tmp_path / "p.db", "SELECT hex(props_json), * FROM events ORDER BY event_id")

        found = await rebuilt(tmp_path / "p.db")
        await project(tmp_path / "p.db", [planned("later")])

        assert found == Audit(messages=32, rows=10, differing=0, differences=())
        after = rows(tmp_path / "p.db", "SELECT hex(props_json), * FROM events ORDER BY event_id")
        assert after[:10] == before
        assert after[10][1] == "later"

    @pytest.mark.parametrize(
        ("sql", "live", "folded"),
        [
            (TAMPER, "tampered", "completed"),
            ("DELETE FROM events WHERE event_id = 'e-00003'", None, "completed"),
            (GHOST, "active", None),
        ],
        ids=["changed", "missing", "ghost"],
    )
    async def test_repairs_what_is_not_the_fold(
        self, tmp_path: Path, sql: str, live: str | None, folded: str | None
    ) -> None:
        """A row that was tampered with is counted, shown and repaired."""
        await project(tmp_path / "p.db", history())
        before = rows(tmp_path / "p.db")
        change(tmp_path / "p.db", sql)

        found = await rebuilt(tmp_path / "p.db", examples=5)

        (difference,) = found.differences
        assert found.differing == 1
        assert difference.table == "events"
        assert (difference.live or {}).get("status") == live
        assert (difference.folded or {}).get("status") == folded
        assert rows(tmp_path / "p.db") == before

    async def test_shows_as_many_differences_as_asked(self, tmp_path: Path) -> None:
        """All differences are counted, and the first ones are shown in full."""
        await project(tmp_path / "p.db", history())
        change(tmp_path / "p.db", "UPDATE events SET chat_id = 'x' WHERE event_id < 'e-00007'")

        found = await audited(tmp_path / "p.db")
        none = await rebuilt(tmp_path / "p.db", examples=0)

        assert [d.event_id for d in found.differences] == [f"e-0000{n}" for n in range(7)]
        assert (found.differing, none.differing, none.differences) == (7, 7, ())

    async def test_reports_progress_over_streams_of_any_length(self, tmp_path: Path) -> None:
        """A stream that is longer than a chunk of the scan is folded completely."""
        long = [planned("e-1"), *(reverted("e-1", "active") for _ in range(4_500))]
        both = [planned("e-0"), *long, planned("e-2")]
        steps: list[tuple[int, int]] = []
        await project(tmp_path / "p.db", both)

        found = await rebuilt(tmp_path / "p.db", progress=lambda *step: steps.append(step))

        assert (found.messages, found.differing) == (4_503, 0)
        assert steps == sorted(steps)
        assert steps[-1] == (4_503, 4_503)
        assert rows(tmp_path / "p.db") == expected_rows(both)

    async def test_of_an_empty_log_gives_empty_tables(self, tmp_path: Path) -> None:
        """A file that has received no message yet is rebuilt like any other."""
        await project(tmp_path / "p.db")

        found = await rebuilt(tmp_path / "p.db")

        assert (found.messages, found.rows, found.differing) == (0, 0, 0)
        assert rows(tmp_path / "p.db") == []


class TestAudit:
    async def test_changes_nothing(self, tmp_path: Path) -> None:
        """It finds the tampered row and leaves it alone."""
        await project(tmp_path / "p.db", history())
        change(tmp_path / "p.db", TAMPER)
        before = (tmp_path / "p.db").read_bytes()

        found = await audited(tmp_path / "p.db")

        assert found.differing == 1
        assert (tmp_path / "p.db").read_bytes() == before
        assert not (tmp_path / "p.db.rebuild").exists()

    async def test_sees_one_snapshot_while_the_worker_writes(self, tmp_path: Path) -> None:
        """A commit during the audit shows in neither of the two sides."""
        await project(tmp_path / "p.db", history())

        found = await audit(
            SqliteStore(tmp_path / "p.db"),
            load(),
            lambda done, total: change(tmp_path / "p.db", GHOST),
            examples=10,
        )

        assert found.differing == 0
        assert (await audited(tmp_path / "p.db")).differing == 1


class TestReaders:
    async def test_see_the_old_rows_until_the_new_ones_are_complete(self, tmp_path: Path) -> None:
        """While the log is folded, every query reads as before."""
        await project(tmp_path / "p.db", history())
        change(tmp_path / "p.db", TAMPER)
        before, seen = rows(tmp_path / "p.db"), []

        await rebuilt(tmp_path / "p.db", progress=lambda *_: seen.append(rows(tmp_path / "p.db")))

        assert seen == [before] * len(seen)
        assert seen
        assert rows(tmp_path / "p.db") != before

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
