import asyncio
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests import places
from tests.builders import completed, planned
from tests.cli.commands import run_command
from tests.cli.conftest import Place
from tests.database import change, rows
from tests.disk import Disk, cannot_mount
from tests.oracle import expected_rows
from tests.processes import environment
from tests.unit.projecting import arrivals, project, projecting, verdicts
from worker.store.postgres.address import Address

LIFE = [planned("e-1"), completed("e-1"), planned("e-2")]
TAMPER = "UPDATE events SET status = 'expired' WHERE event_id = 'e-1'"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestVerify:
    """`rebuild --verify` compares, and changes nothing."""

    async def test_agrees_with_what_was_folded(self, tmp_path: Path) -> None:
        """It exits with 0 and prints one sentence."""
        database = tmp_path / "projection.db"
        await project(database, LIFE)

        code, out, _ = await run_command("rebuild", "--verify", folder=tmp_path, database=database)

        assert code == 0
        assert out == "Folded 3 messages into 2 rows; the live rows are the same.\n"

    async def test_lists_what_differs(self, tmp_path: Path) -> None:
        """It exits with 1, and prints the event, the column, and both values."""
        database = tmp_path / "projection.db"
        await project(database, LIFE)
        change(database, TAMPER)
        before = rows(database)

        code, out, _ = await run_command("rebuild", "--verify", folder=tmp_path, database=database)

        assert code == 1
        assert all(word in out for word in ("e-1", "status", "expired", "completed"))
        assert "e-2" not in out
        assert rows(database) == before

    async def test_gives_json(self, tmp_path: Path) -> None:
        """It prints one document with the rows that differ."""
        database = tmp_path / "projection.db"
        await project(database, LIFE)
        change(database, TAMPER)

        code, out, _ = await run_command(
            "rebuild", "--verify", "--json", folder=tmp_path, database=database
        )

        found = json.loads(out)
        assert (code, found["differing"]) == (1, 1)
        assert found["differences"][0]["live"]["status"] == "expired"
        assert found["differences"][0]["folded"]["status"] == "completed"


@pytest.mark.skipif(cannot_mount() is not None, reason=str(cannot_mount()))
class TestATemporaryFolderWithoutRoom:
    async def test_is_blamed(self, tmp_path: Path) -> None:
        """The live file is not blamed, and the interrupted read leaves no traceback."""
        database = tmp_path / "projection.db"
        events = [planned(f"e-{n:04}", payload={"props": {"p": "x" * 4_000}}) for n in range(1_500)]
        await project(database, events)
        small = Disk(tmp_path / "small", "size=1m")

        found = await asyncio.to_thread(
            subprocess.run, [*small.inside, sys.executable, "-m", "worker", "rebuild", "--verify"],
            env=environment(database=database) | {"TMPDIR": str(small.folder)}, cwd=tmp_path,
            check=False, capture_output=True, text=True,
        )  # fmt: skip

        assert found.returncode == 1
        assert f"no room for the tables into which the log is folded (path {small.folder}," in (
            found.stderr
        )
        assert "TMPDIR" in found.stderr
        assert "Traceback" not in found.stderr


class TestRebuild:
    """`rebuild` replaces the rows with the fold of the log."""

    async def test_corrects_what_differs(self, tmp_path: Path) -> None:
        """It says how many events differed, and afterwards none does."""
        database = tmp_path / "projection.db"
        await project(database, LIFE)
        change(database, TAMPER)

        code, out, _ = await run_command("rebuild", folder=tmp_path, database=database)

        assert code == 0
        assert "the live rows of 1 event differed and have been corrected." in out
        companions = ["projection.db-shm", "projection.db-wal", "projection.db.lock"]
        assert names_in(tmp_path) == ["projection.db", *companions]
        assert rows(database) == expected_rows(LIFE)

    async def test_makes_no_database(self, tmp_path: Path) -> None:
        """A wrong path is an error, not an empty read model."""
        code, _, err = await run_command("rebuild", folder=tmp_path, database=tmp_path / "none.db")

        assert code == 1
        assert err.startswith("There is no database")
        assert names_in(tmp_path) == []

    async def test_is_refused_while_a_worker_runs_and_verify_is_not(self, place: Place) -> None:
        """One process may write, and any number may read."""
        worker = await place.consuming()

        code, _, err = await run_command("rebuild", folder=place.folder, **place.settings)
        verified, _, _ = await run_command(
            "rebuild", "--verify", folder=place.folder, **place.settings
        )

        assert code == 1
        assert f"pid {worker.pid} on" in err
        assert verified == 0


class TestOnPostgres:
    async def test_corrects_what_differs_while_a_worker_is_connected(
        self, tmp_path: Path, database_url: str
    ) -> None:
        """`--verify` finds it, `rebuild` corrects it, and nothing has to be stopped."""
        address = Address(database_url)
        run = partial(run_command, folder=tmp_path, database=database_url)
        async with projecting(address) as projector:
            await projector.project(arrivals(LIFE))
            places.change(address, TAMPER)

            differs, table, _ = await run("rebuild", "--verify")
            code, out, _ = await run("rebuild")
            agrees, _, _ = await run("rebuild", "--verify")
            outcomes = await projector.project(arrivals([planned("e-3")]))

        assert (differs, code, agrees) == (1, 0, 0)
        assert all(word in table for word in ("e-1", "status", "expired", "completed"))
        assert "the live rows of 1 event differed and have been corrected." in out
        assert verdicts(outcomes) == ["applied"]

    async def test_makes_no_database(self, tmp_path: Path, database_url: str) -> None:
        """A wrong address is an error, not an empty read model."""
        for verify in ([], ["--verify"]):
            code, _, err = await run_command(
                "rebuild", *verify, folder=tmp_path, database=database_url
            )

            assert code == 1
            assert err.startswith("There is no database of the worker")
        assert places.rows(Address(database_url), "SELECT to_regnamespace('projection')") == [
            (None,)
        ]
