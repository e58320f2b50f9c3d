"""SQLite's method: fail at the first step, the second, the nth, until a run meets no fault."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.builders import Message
from tests.crash.one_batch import BATCH, BEFORE
from tests.database import log, query, rows
from tests.histories import distinct
from tests.oracle import expected_rows
from tests.strace import traced
from tests.unit.projecting import arrivals, project, projecting

ROOT = Path(__file__).parents[2]
KILLED = -9
# More calls than one batch makes: a sweep that gets this far would never end.
TOO_MANY = 300


@dataclass(frozen=True, slots=True)
class Run:
    """How one run of `tests.crash.one_batch` ended."""

    said: list[str]
    """Of each try: held or done."""
    exit_code: int
    saw_fault: bool


class Batches:
    """A process that projects the batch into one file after another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Talk to a process that has already been started."""
        self._process = process

    def run(self, database: Path, fault: str, *, from_opening: bool) -> Run:
        """Project the batch with a fault.

        The fault hits all threads, starting before the file is opened; or it hits only the thread
        that opened the file, so that the disk works when the file is reopened.
        """
        calls, said = database.with_name("calls"), []
        self._say(database)
        task = int(self._hear())
        if not from_opening:
            self._say("open")
            task = int(self._hear())
        with traced([task], calls, fault, follow=from_opening):
            self._say("go")
            while not (word := self._hear()).startswith("ended "):
                if word.isdigit():
                    self._say("go")
                else:
                    said.append(word)
        exit_code = int(word.removeprefix("ended "))
        return Run(said, exit_code, exit_code == KILLED or "INJECTED" in calls.read_text())

    def _say(self, word: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        heard = self._process.stdout.readline().strip()
        assert heard, "the process that projects batches has ended"
        return heard


@contextmanager
def batches() -> Iterator[Batches]:
    """Start the process, and end it with the block."""
    program = [sys.executable, "-m", "tests.crash.one_batch"]
    with subprocess.Popen(
        program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Batches(process)
        finally:
            process.kill()


async def prepare(folder: Path, state: str) -> list[Message]:
    """Leave a database in a folder as a worker leaves it; return what was projected into it.

    `closed`: by a worker that ended; `killed`: with its last commits in the WAL; `new`: not yet.
    """
    if state == "new":
        return []
    if state == "closed":
        await project(folder / "p.db", BEFORE)
    else:
        async with projecting(folder / "open.db") as projector:
            await projector.project(arrivals(BEFORE))
            for suffix in ("", "-wal", ".lock"):
                shutil.copy(folder / f"open.db{suffix}", folder / f"p.db{suffix}")
    return BEFORE


async def sweep(folder: Path, state: str, fault: str, *, from_opening: bool) -> AsyncIterator[Run]:
    """Put the fault at the first call, the second and so on, each time from the same initial state.

    After each run the file holds the whole batch or none of it, and the whole batch if the run said
    so. Projecting it again without a fault gives the right rows.
    """
    (begin := folder / "begin").mkdir()
    before = await prepare(begin, state)
    with batches() as process:
        for number in count(1):
            assert number < TOO_MANY
            shutil.copytree(begin, folder / str(number))
            database = folder / str(number) / "p.db"
            run = process.run(database, fault.format(number), from_opening=from_opening)
            require_whole_or_none(database, before, is_done="done" in run.said)
            await project(database, BATCH)
            assert rows(database) == expected_rows([*before, *BATCH]), number
            assert log(database) == distinct([*before, *BATCH])
            shutil.rmtree(folder / str(number))
            yield run
            if not run.saw_fault:
                return


def require_whole_or_none(database: Path, before: list[Message], *, is_done: bool) -> None:
    """Fail if only part of the batch is there, or if it is missing although the run said `done`."""
    if not is_done and (not database.exists() or not _tables(database)):
        return
    whole = [*before, *BATCH]
    found = log(database)
    assert found in ([distinct(whole)] if is_done else [distinct(whole), distinct(before)])
    projected = whole if found == distinct(whole) else before
    if projected or _tables(database) > {"events"}:
        assert rows(database) == expected_rows(projected)
    assert query(database, "PRAGMA integrity_check") == [("ok",)]


def _tables(database: Path) -> set[str]:
    try:
        return {name for (name,) in query(database, "SELECT name FROM sqlite_schema")}
    except sqlite3.OperationalError:
        # A reader cannot create the WAL index of an empty file.
        return set()
