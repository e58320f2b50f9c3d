import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from tests.builders import completed, planned, started
from tests.database import change
from tests.histories import histories
from tests.oracle import expected_rows
from tests.unit.projecting import arrivals, project, projecting, rows
from worker.errors import StoreUnavailable, StoreUnusable

FIRST = [planned(f"e-{number}") for number in range(50)]
SECOND = [started(f"e-{number}") for number in range(50)]
THIRD = [completed(f"e-{number}") for number in range(50)]
SUFFIXES = ("", "-wal", "-shm", ".lock")
ROUNDS = 40


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """Return a database in its own folder, with the first messages in it."""
    (tmp_path / "live").mkdir()
    path = tmp_path / "live" / "p.db"
    await project(path, FIRST)
    return path


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def backup(path: Path) -> Path:
    """Copy a database as the documentation says, even while it is open."""
    copy = path.parent.parent / "backup.db"
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def as_after_a_kill(path: Path) -> Path:
    """Copy the files as a killed worker would leave them, while `path` is open."""
    killed = path.parent.parent / "killed" / "p.db"
    killed.parent.mkdir()
    for suffix in SUFFIXES:
        # Size and times, too: a kill changes neither.
        shutil.copy2(beside(path, suffix), beside(killed, suffix))
    return killed


def checkpointed(path: Path) -> None:
    change(path, "PRAGMA wal_checkpoint(PASSIVE)")


def remove(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("moved"))


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def overwritten(path: Path, content: bytes) -> bytes:
    """Overwrite the file in place, and return its previous contents."""
    before = path.read_bytes()
    path.write_bytes(content)
    return before


class TestAFileThatIsTakenAway:
    @pytest.mark.parametrize("take", [remove, move, replace])
    @pytest.mark.parametrize("suffix", SUFFIXES)
    async def test_ends_the_writing_and_costs_nothing_that_was_acked(
        self, path: Path, suffix: str, take: Callable[[Path], None]
    ) -> None:
        """SQLite would not notice the removal of database, WAL, shared memory or lock file."""
        async with projecting(path) as projector:
            await projector.project(arrivals(SECOND))
            take(beside(path, suffix))

            with pytest.raises(StoreUnusable, match="deleted, moved or replaced") as refused:
                await projector.project(arrivals(THIRD))

        assert str(beside(path, suffix)) in refused.value.message
        if suffix:
            await project(path, [])
            assert rows(path) == expected_rows([*FIRST, *SECOND])

    async def test_is_noticed_before_a_batch_of_duplicates_is_acked(self, path: Path) -> None:
        """Such a batch writes nothing, so checking for its effect would not be enough."""
        async with projecting(path) as projector:
            await projector.project(arrivals(SECOND))
            beside(path, "-wal").unlink()

            with pytest.raises(StoreUnusable):
                await projector.project(arrivals(SECOND, again=True))


class TestAFileThatIsOverwritten:
    async def test_by_a_backup_ends_the_writing_until_an_operator_has_looked(
        self, path: Path
    ) -> None:
        """`cp backup.db projection.db` keeps the inode, so SQLite would write into a mixture."""
        copy = backup(path)
        async with projecting(path) as projector:
            await projector.project(arrivals(SECOND))
            checkpointed(path)
            await projector.project(arrivals(SECOND, again=True))
            shutil.copyfile(copy, path)

            with pytest.raises(StoreUnusable, match="was overwritten"):
                await projector.project(arrivals(THIRD))
        # SQLite wrote its WAL into the copy when it was closed.
        with pytest.raises(StoreUnusable, match="was overwritten") as refused:
            await project(path, THIRD)
        assert str(beside(path, ".lock")) in refused.value.hint

        restore(copy, path)
        await project(path, THIRD)

        assert rows(path) == expected_rows([*FIRST, *THIRD])

    async def test_by_something_else_is_not_written_to(self, path: Path) -> None:
        """The batch waits, because a copy may be under way."""
        async with projecting(path) as projector:
            await projector.project(arrivals(SECOND))
            whole = overwritten(path, b"half a copy")

            with pytest.raises(StoreUnavailable, match="is incomplete"):
                await projector.project(arrivals(THIRD))
            overwritten(path, whole)
            await projector.project(arrivals(THIRD))

        assert rows(path) == expected_rows([*FIRST, *SECOND, *THIRD])

    async def test_by_nothing_at_all_is_noticed_in_the_wal_too(self, path: Path) -> None:
        """`: > projection.db-wal` removes what the database does not hold yet."""
        async with projecting(path) as projector:
            await projector.project(arrivals(SECOND))
            os.truncate(beside(path, "-wal"), 0)

            with pytest.raises(StoreUnusable, match="was overwritten"):
                await projector.project(arrivals(THIRD))

    async def test_by_the_checkpoint_of_another_process_goes_on(self, path: Path) -> None:
        """A backup tool may run one; the operator is told, and nothing is lost."""
        async with projecting(path) as projector:
            for batch in (SECOND, THIRD):
                change(path, "PRAGMA wal_checkpoint(TRUNCATE)")
                with pytest.raises(StoreUnavailable, match="Another connection"):
                    await projector.project(arrivals(batch))
                await projector.project(arrivals(batch))

        assert rows(path) == expected_rows([*FIRST, *SECOND, *THIRD])

    async def test_by_a_checkpoint_beside_a_long_reader_goes_on(self, path: Path) -> None:
        """Without its WAL the database may then be shorter than its first page says."""
        rng, sent, was_short = Random(1), [*FIRST], False
        async with projecting(path) as projector:
            for number in range(ROUNDS):
                batches = [histories(rng, events=n, name=f"{number}-{n}") for n in (60, 2, 1)]
                sent += [message for batch in batches for message in batch]
                await projector.project(arrivals(batches[0]))
                with closing(sqlite3.connect(path, isolation_level=None)) as reader:
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM events").fetchall()
                    await projector.project(arrivals(batches[1]))
                    checkpointed(path)
                    was_short = was_short or is_short(path)
                    await projector.project(arrivals(batches[2]))

        assert was_short
        assert rows(path) == expected_rows(sent)


def is_short(path: Path) -> bool:
    """Return whether SQLite treats the database as damaged when it ignores the WAL."""
    uri = f"{path.as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        try:
            connection.execute("SELECT * FROM file")
        except sqlite3.DatabaseError:
            return True
    return False


def restore(copy: Path, path: Path) -> None:
    """Follow the steps of docs/upgrade.md."""
    for suffix in SUFFIXES:
        beside(path, suffix).unlink(missing_ok=True)
    shutil.copyfile(copy, path)


def without_wal(path: Path) -> None:
    beside(path, "-wal").unlink()


def with_a_cut_wal(path: Path) -> None:
    os.truncate(beside(path, "-wal"), beside(path, "-wal").stat().st_size // 2)


def with_a_spoiled_wal(path: Path) -> None:
    with beside(path, "-wal").open("r+b") as wal:
        wal.write(b"\xff" * 64)


class TestAStart:
    @pytest.mark.parametrize("spoil", [without_wal, with_a_cut_wal, with_a_spoiled_wal])
    async def test_without_what_was_acked_is_refused(
        self, path: Path, spoil: Callable[[Path], None]
    ) -> None:
        """SQLite takes a missing or damaged WAL for a commit that never happened."""
        async with projecting(path) as projector:
            for batch in (SECOND, THIRD):
                await projector.project(arrivals(batch))
            killed = as_after_a_kill(path)
        spoil(killed)

        for _ in range(2):
            with pytest.raises(StoreUnusable, match="lost what was acked") as refused:
                await project(killed, [])

        assert str(beside(killed, ".lock")) in refused.value.hint

    async def test_after_a_kill_finds_everything(self, path: Path) -> None:
        """A crash never leaves what the checks above look for."""
        async with projecting(path) as projector:
            await projector.project(arrivals(SECOND))
            checkpointed(path)
            await projector.project(arrivals(THIRD))
            killed = as_after_a_kill(path)

        await project(killed, [])

        assert rows(killed) == expected_rows([*FIRST, *SECOND, *THIRD])

    async def test_on_a_backup_beside_an_old_wal_is_refused(self, path: Path) -> None:
        """SQLite would write the pages of the WAL over the backup and undo or corrupt it."""
        copy = backup(path)
        async with projecting(path) as projector:
            await projector.project(arrivals(SECOND))
            checkpointed(path)
            await projector.project(arrivals(THIRD))
            killed = as_after_a_kill(path)
        shutil.copyfile(copy, killed)

        with pytest.raises(StoreUnusable, match="an older copy"):
            await project(killed, [])

        assert killed.read_bytes() == copy.read_bytes()

    async def test_on_a_restored_backup_goes_on_from_there(self, path: Path) -> None:
        """It is refused while it may be a mistake, and accepted once the steps were followed."""
        copy = backup(path)
        await project(path, SECOND)
        shutil.copyfile(copy, path)
        with pytest.raises(StoreUnusable, match="an older copy"):
            await project(path, [])

        restore(copy, path)
        await project(path, THIRD)

        assert rows(path) == expected_rows([*FIRST, *THIRD])

    async def test_on_a_new_file_beside_an_old_lock_is_a_new_start(self, path: Path) -> None:
        """The lock file's note is about another file."""
        remove(path)

        await project(path, SECOND)

        assert rows(path, "SELECT count(*) FROM log") == [(len(SECOND),)]

    async def test_on_a_file_with_two_names_is_refused(self, path: Path) -> None:
        """Each name would have its own WAL and lock."""
        os.link(path, path.with_name("other.db"))

        with pytest.raises(StoreUnusable, match=r"2 names \(hard links\)"):
            await project(path, [])
