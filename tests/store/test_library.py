import importlib.util
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import aiosqlite
import pytest

from tests.processes import ROOT, environment
from worker.errors import StoreUnusable
from worker.store.sqlite.file import SCRATCH
from worker.store.sqlite.library import SQLITE_VERSION, has_wal_reset_bug, require_safe_commits
from worker.store.sqlite.store import Writer

needs_pysqlite3 = pytest.mark.skipif(
    importlib.util.find_spec("pysqlite3") is None, reason="there is no pysqlite3 for this machine"
)

# Simulates a program that has imported a SQLite with the bug.
OLD_LIBRARY = """
import sqlite3
sqlite3.sqlite_version_info = (3, 40, 1)
"""
COMMAND = """
from worker.cli import main
main()
"""
WRITES = """
import asyncio, sys
from worker.errors import StoreUnusable
from worker.store.sqlite.store import Writer

async def main():
    try:
        async with Writer(sys.argv[1]):
            pass
    except StoreUnusable as error:
        print(error.message, error.hint)

asyncio.run(main())
"""
READS = """
import asyncio, sys
from worker.store.sqlite.connection import Reader

async def main():
    async with Reader(sys.argv[1]) as reader:
        print(len(await reader.fetch_all("SELECT * FROM log")))

asyncio.run(main())
"""


def run(*arguments: str | Path, code: int = 0, **settings: object) -> str:
    """Run a separate Python program and return its output."""
    result = subprocess.run(
        (sys.executable, "-c", *arguments),
        cwd=ROOT,
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == code, result.stdout
    return result.stdout.strip()


class TestTheLibrary:
    """A process uses one copy of SQLite, and a fixed one if it can choose."""

    def test_is_one_for_tests_handlers_and_worker(self) -> None:
        """Two copies that open one file would drop each other's locks."""
        assert sqlite3.sqlite_version_info == SQLITE_VERSION
        assert sqlite3.connect is aiosqlite.core.sqlite3.connect  # type: ignore[attr-defined]

    @needs_pysqlite3
    @pytest.mark.parametrize(
        "first", ["from worker import on", "import worker.cli.run", "import worker.projections"]
    )
    def test_is_the_one_of_the_package(self, first: str) -> None:
        """It is chosen before any projection is loaded, which may import sqlite3."""
        found = run(f"{first}; import sqlite3, sqlite3.dbapi2 as d; print(sqlite3, d)")

        assert found.count("pysqlite3") == 4

    def test_is_the_one_that_the_process_uses_already(self) -> None:
        """An application may already have opened files with it."""
        found = run(
            "import sqlite3, worker.store; import sqlite3 as again; print(sqlite3 is again)"
        )

        assert found == "True"


class TestASQLiteThatLosesCommits:
    """It is refused wherever it could do harm."""

    @pytest.mark.parametrize(
        ("version", "expected"),
        [
            ((3, 6, 23), False),
            ((3, 7, 0), True),
            ((3, 40, 1), True),
            ((3, 44, 5), True),
            ((3, 44, 6), False),
            ((3, 45, 0), True),
            ((3, 50, 6), True),
            ((3, 50, 7), False),
            ((3, 51, 0), True),
            ((3, 51, 2), True),
            ((3, 51, 3), False),
            ((3, 53, 4), False),
        ],
    )
    def test_is_known_by_its_version(
        self, version: tuple[int, int, int], *, expected: bool
    ) -> None:
        """The versions are those listed in sqlite.org/wal.html."""
        assert has_wal_reset_bug(version) is expected

    def test_is_refused_with_the_way_out(self) -> None:
        """The error names the version, the package and the fixed versions."""
        with pytest.raises(StoreUnusable, match=re.escape("SQLite 3.51.2 ")) as refused:
            require_safe_commits((3, 51, 2))

        assert "pysqlite3" in refused.value.hint
        assert "3.51.3" in refused.value.hint

    @pytest.mark.parametrize("command", ["run", "rebuild", "check"])
    async def test_ends_a_command_that_would_write(self, command: str, tmp_path: Path) -> None:
        """The command ends before it consumes or folds anything; `check` reports the version."""
        async with Writer(tmp_path / "p.db"):
            pass

        said = run(
            OLD_LIBRARY + COMMAND,
            command,
            code=1,
            database=tmp_path / "p.db",
            amqp_url="amqp://guest:guest@127.0.0.1:9/",
        )

        assert "SQLite 3.40.1 can lose commits" in said
        assert "Traceback" not in said

    def test_writes_no_file(self, tmp_path: Path) -> None:
        """It creates none, either."""
        said = run(OLD_LIBRARY + WRITES, tmp_path / "p.db")

        assert said.startswith("SQLite 3.40.1 can lose commits")
        assert list(tmp_path.iterdir()) == []

    def test_writes_a_scratch_database(self) -> None:
        """A database that only one connection sees has no WAL."""
        assert run(OLD_LIBRARY + WRITES, SCRATCH) == ""

    async def test_reads_and_leaves_the_wal_alone(self, tmp_path: Path) -> None:
        """A read-only connection runs no checkpoint, even if it is the last to close."""
        path, wal = tmp_path / "p.db", tmp_path / "p.db-wal"
        async with Writer(path) as writer:
            await writer.probe()
            before = path.read_bytes(), wal.read_bytes()
        # As after a kill: closing a writer runs a checkpoint.
        path.write_bytes(before[0])
        wal.write_bytes(before[1])

        assert run(OLD_LIBRARY + READS, path) == "0"

        assert (path.read_bytes(), wal.read_bytes()) == before
