"""PostgreSQL's installed programs, and whom they run as: a server refuses to run as root."""

import atexit
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.servers import NodeFailed, dying_with_us
from tests.waiting import patience

DEBIAN_SERVERS = Path("/usr/lib/postgresql")
ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}

# One folder is made and then copied for each node, because making takes three times as long.
MAKING = (
    "--username=postgres --auth-local=trust --auth-host=scram-sha-256 --no-sync --encoding=UTF8"
    " --locale=C.UTF-8 --locale-provider=icu --icu-locale=en-US"
)


def server_programs() -> Path | None:
    """Return the folder of the newest server's programs; None if PostgreSQL is not installed."""
    versions = DEBIAN_SERVERS.glob("*/bin/postgres")
    found = max(versions, key=lambda program: int(program.parts[-3]), default=None)
    path = found or shutil.which("postgres")
    return Path(path).resolve().parent if path else None


def programs() -> Path:
    """Return the same, or raise `NodeFailed`."""
    if (folder := server_programs()) is None:
        raise NodeFailed("No PostgreSQL server is installed; `make setup` installs one.")
    return folder


@cache
def owner() -> tuple[int, int]:
    """Return the user and the group that a server runs as, because it refuses to run as root."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    known = {user.pw_name: user for user in pwd.getpwall()}
    user = known.get("postgres") or known["nobody"]
    return user.pw_uid, user.pw_gid


def unprivileged() -> tuple[str, ...]:
    """Return what stands before a command that runs as that user and ends with us."""
    if os.geteuid() != 0:
        return dying_with_us()
    user, group = owner()
    return dying_with_us("--reuid", str(user), "--regid", str(group), "--clear-groups")


def own_folder(parent: Path | None = None) -> Path:
    """Return a fresh temporary folder, in this one if any, that belongs to that user alone."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-node-", dir=parent))
    shutil.chown(folder, *owner())
    return folder


@cache
def template() -> Path:
    """Return a data folder for nodes to copy, made once in a process."""
    folder = own_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run(folder, "initdb", f"--pgdata={folder / 'data'}", *MAKING.split())
    return folder / "data"


def run(folder: Path, program: str, *arguments: str, inside: Sequence[str] = ()) -> None:
    """Run a program in a folder as that user, and wait for its end.

    `inside` is what stands before a command that sees the folder's disk.
    """
    command = (*inside, *unprivileged(), str(programs() / program), *arguments)
    result = subprocess.run(
        command,
        env=ENVIRONMENT,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
    )
    if result.returncode != 0:
        raise NodeFailed(f"{program}: {result.stderr}{result.stdout}")
