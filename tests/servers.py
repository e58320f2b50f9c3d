"""What the private nodes of RabbitMQ and of PostgreSQL have in common: ports and processes."""

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.waiting import Patience

START_SECONDS = 60.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.05

# Below the range from which the kernel assigns ports to outgoing connections (32768 up), so that
# nothing takes one of ours while the node is stopped.
PORTS = range(20_000, 32_000)


class NodeFailed(Exception):
    """The node did not start, or a command failed; the text ends with its output."""


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that are free, and that the kernel assigns to nobody."""
    # Each is held until all are chosen, so that they differ.
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = random.choice(PORTS)
            with suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
        return ports


def spawn(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a program in a folder; its output is appended to the file `console` there."""
    with (folder / "console").open("ab") as console:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            # The terminal's Ctrl-C is for the test run, which then ends the node.
            start_new_session=True,
        )


def dying_with_us(*options: str) -> tuple[str, ...]:
    """Return what stands before a command that ends with the thread that starts it, even if killed.

    The options are those of setpriv, which sets this up. Where it is missing, the command outlives
    a test run that is killed.
    """
    return ("setpriv", "--pdeathsig", "KILL", *options) if shutil.which("setpriv") else ()


async def poll(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition, and return whether it came true in time."""
    waiting = Patience(seconds)
    while not condition():
        if waiting.is_over():
            return False
        await asyncio.sleep(POLL_SECONDS)  # noqa: TID251 - another process gives no event
    return True


def family(leader: subprocess.Popen[bytes]) -> list[int]:
    """Return the ids of a process and its descendants, the process itself first."""
    # By parent, because they may leave the process group and the session.
    parents = _parents()
    found = [leader.pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def children(pid: int) -> list[int]:
    """Return the ids of the living children of a process."""
    return [child for child, parent in _parents().items() if parent == pid]


def signal_family(leader: subprocess.Popen[bytes], number: signal.Signals) -> list[int]:
    """Send a signal to a process and its descendants, and return their ids."""
    # A stopped process starts no others while we look for its children.
    leader.send_signal(signal.SIGSTOP)
    members = family(leader)
    for pid in members:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return members


def kill_family(leader: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants, and return when all are gone."""
    if leader.poll() is not None:
        # Its pid may belong to another process by now. What it started ends by itself.
        return
    # Their list comes before the kill: nothing names the parent of the others once it is gone.
    members = set(signal_family(leader, signal.SIGKILL))
    leader.wait()
    waiting = Patience(STOP_SECONDS)
    while survivors := _parents().keys() & members:
        if waiting.is_over():
            raise NodeFailed(f"Processes survive SIGKILL: {survivors}")
        time.sleep(POLL_SECONDS / 10)  # noqa: TID251 - another process gives no event


def _parents() -> dict[int, int]:
    """Return the parent of every living process; zombies are left out, as they have ended."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # Before the parenthesis comes the command's name, which may contain anything.
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(file.parent.name)] = int(parent)
    return parents
