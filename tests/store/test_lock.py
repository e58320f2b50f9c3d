import os
import signal
import socket
from pathlib import Path

import pytest

from tests.store.processes import line, process
from worker.errors import StoreUnusable, WriterLocked
from worker.store.sqlite.lock import WriterLock

HOLD = """
import sys
from pathlib import Path
from worker.store.sqlite.lock import WriterLock
with WriterLock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
# A child of the holder, as any library might start one, must not inherit the lock.
HOLD_WITH_CHILD = """
import subprocess, sys
from pathlib import Path
from worker.store.sqlite.lock import WriterLock
WriterLock(Path(sys.argv[1])).acquire()
child = subprocess.Popen(["sleep", "600"], close_fds=False)
print(child.pid, flush=True)
sys.stdin.read()
"""


class TestSecondProcess:
    def test_is_refused_and_told_who_writes(self, tmp_path: Path) -> None:
        """The error names the path, the pid, the host and the start time."""
        database = tmp_path / "p.db"

        with process(HOLD, database) as holder:
            line(holder)
            with pytest.raises(WriterLocked) as refused:
                WriterLock(database).acquire()

        sentence = str(refused.value)
        assert f"path {database}" in sentence
        assert f"pid {holder.pid} on {socket.gethostname()} since 20" in sentence
        assert "Hint: " in sentence

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_gets_the_lock_when_the_first_is_killed(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        """The kernel frees the lock, however the process ends; the new holder writes its note."""
        lock = WriterLock(tmp_path / "p.db")
        with process(HOLD, lock.database) as holder:
            line(holder)
            holder.send_signal(number)
            holder.wait()

            with lock:
                assert f'"pid": {os.getpid()}' in lock.path.read_text()

    def test_gets_the_lock_though_a_child_of_the_first_lives(self, tmp_path: Path) -> None:
        """The lock belongs to the worker, not to the processes that it started."""
        lock = WriterLock(tmp_path / "p.db")
        with process(HOLD_WITH_CHILD, lock.database) as holder:
            child = int(line(holder))
            try:
                holder.kill()
                holder.wait()

                with lock:
                    assert lock.path.exists()
            finally:
                os.kill(child, signal.SIGKILL)

    def test_is_refused_by_this_process(self, tmp_path: Path) -> None:
        """The lock works in both directions."""
        with WriterLock(tmp_path / "p.db"), process(HOLD, tmp_path / "p.db") as other:
            _, errors = other.communicate()

        assert other.returncode == 1
        assert (
            f"WriterLocked: The database is being written by another process (path {tmp_path}"
            in (errors)
        )
        assert f"pid {os.getpid()} on" in errors


class TestLock:
    def test_is_beside_the_database(self, tmp_path: Path) -> None:
        """SQLite's own locks on the database are left alone; a missing folder is created."""
        database = tmp_path / "a" / "b" / "p.db"

        with WriterLock(database):
            assert [file.name for file in database.parent.iterdir()] == ["p.db.lock"]

    def test_can_be_released_twice_and_taken_again(self, tmp_path: Path) -> None:
        """Releasing twice does not release another holder's lock."""
        first, second = WriterLock(tmp_path / "p.db"), WriterLock(tmp_path / "p.db")
        first.acquire()
        first.release()
        second.acquire()

        first.release()

        with pytest.raises(WriterLocked):
            first.acquire()
        second.release()
        first.acquire()
        first.release()

    def test_is_one_for_each_database(self, tmp_path: Path) -> None:
        """Two databases in one folder have two writers."""
        with WriterLock(tmp_path / "p.db"), WriterLock(tmp_path / "q.db"):
            assert sorted(file.name for file in tmp_path.iterdir()) == ["p.db.lock", "q.db.lock"]

    @pytest.mark.parametrize("note", ["", "{", "[]", "{}", "1", '{"pid": 1}', "\xff"])
    def test_is_held_whatever_the_note_says(self, tmp_path: Path, note: str) -> None:
        """The note may be missing or incomplete: only the lock counts."""
        lock = WriterLock(tmp_path / "p.db")
        with WriterLock(tmp_path / "p.db"):
            lock.path.write_bytes(note.encode("latin-1"))

            with pytest.raises(WriterLocked, match="which has not identified itself yet"):
                lock.acquire()

    def test_that_cannot_be_made_says_so(self, tmp_path: Path) -> None:
        """Waiting would not help, so the error differs from that for a lock held by another."""
        (tmp_path / "file").touch()
        (tmp_path / "p.db.lock").mkdir()

        for database in (tmp_path / "file" / "p.db", tmp_path / "p.db"):
            with pytest.raises(StoreUnusable, match="The lock file cannot be created"):
                WriterLock(database).acquire()

    def test_leaks_no_descriptor(self, tmp_path: Path) -> None:
        """A standby tries the lock twice a second for days."""
        before = len(list(Path("/proc/self/fd").iterdir()))

        with WriterLock(tmp_path / "p.db"):
            for _ in range(50):
                with pytest.raises(WriterLocked):
                    WriterLock(tmp_path / "p.db").acquire()

        assert len(list(Path("/proc/self/fd").iterdir())) == before
