"""Faults in the system calls of a running process, injected by strace, and a trace of its calls."""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.proxy import BASIC_ACK

# Which call SQLite uses to sync depends on how it was built.
SYNC = "fsync,fdatasync"
CALLS = f"pwrite64,{SYNC},sendto"


@cache
def missing() -> str | None:
    """Return why no process can be traced here, or None if one can."""
    if not (program := shutil.which("strace")):
        return "strace is not installed"
    # A kernel may let strace start a process that it traces, but not attach to others.
    with subprocess.Popen(["sleep", "60"]) as other:
        with subprocess.Popen(
            [program, "-p", str(other.pid)], stderr=subprocess.PIPE, text=True
        ) as tracer:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            tracer.terminate()
        other.kill()
    return None if "attached" in said else f"strace may not attach here: {said.strip()}"


def require_strace() -> None:
    """Skip the test if strace is missing or may not trace."""
    if reason := missing():
        pytest.skip(reason)


@contextmanager
def traced(
    tasks: list[int], output: Path, *faults: str, follow: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Trace these threads during the block, with faults such as `pwrite64:error=EIO:when=2`.

    strace counts for each thread separately. With `follow`, the tasks are processes, and all their
    threads are traced, including those that start later; without, those get no faults.
    """
    program = ["strace", "-y", "-xx", "-s", "512", "-e", f"trace={CALLS}", "-o", str(output)]
    program += [part for fault in faults for part in ("-e", f"inject={fault}")]
    program += ["-f"] * follow + [part for task in tasks for part in ("-p", str(task))]
    tracer = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    with tracer:
        try:
            for _ in tasks:
                said = tracer.stderr.readline()
                assert "attached" in said, said
            yield tracer
        finally:
            # Detach from the threads, which then continue normally.
            tracer.send_signal(signal.SIGINT)


def threads(pid: int) -> list[int]:
    """Return the threads that a process has now, the first one first."""
    return sorted(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir())


def calls(output: Path) -> list[str]:
    """Return the calls on the WAL and to the broker, in order: write, sync, ack.

    A failed sync counts as a failure; other calls are left out. An ack counts from where it begins,
    all other calls from where they end.
    """
    said: list[str | None] = []
    begun: dict[str, str] = {}
    for line in output.read_text().split("\n"):
        call = re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), line)
        thread = call.split(" ", 1)[0]
        if " resumed>" in call:
            call = begun.pop(thread, "") + call
        elif call.endswith("<unfinished ...>"):
            begun[thread] = call
        said.append(_word(call))
    return [word for word in said if word]


def _word(call: str) -> str | None:
    is_begun, is_whole = call.endswith("<unfinished ...>"), " resumed>" not in call
    if "sendto(" in call and BASIC_ACK in call.encode("latin-1"):
        return "ack" if is_whole else None
    if "-wal>" not in call or is_begun:
        return None
    if "pwrite64(" in call:
        return "write"
    return "sync" if call.endswith("= 0") else "failure"
