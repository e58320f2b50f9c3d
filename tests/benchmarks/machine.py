"""The machine and the versions, without which figures mean nothing."""

import os
import platform
import sqlite3
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

from tests.postgres_programs import programs
from tests.processes import ROOT
from tests.rabbitmq import RabbitMQNode

LIBRARIES = ("aiormq", "aio-pika", "aiosqlite", "asyncpg", "pydantic", "faststream")
MEGABYTE = 1_000_000
PAGE, FSYNCS = bytes(4_096), 200


async def machine(node: RabbitMQNode, folder: Path) -> dict[str, str]:
    """Return what the measurements ran on; the databases are in this folder."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MEGABYTE
    return {
        "CPU": f"{_cpu()}, {os.cpu_count()} cores",
        "memory": f"{memory / 1_000:.0f} GB",
        "file system": f"{_file_system(folder)}, {_fsync_seconds(folder) * 1_000:.2f} ms an fsync",
        "kernel": platform.release(),
        "RabbitMQ": (await node.ctl("eval", "rabbit_misc:version().")).strip().strip('"'),
        "Erlang": (await node.ctl("eval", "erlang:system_info(otp_release).")).strip().strip('"'),
        "PostgreSQL": _postgres(),
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        **{library: version(library) for library in LIBRARIES},
        "commit": _commit(),
    }


def _postgres() -> str:
    command = (programs() / "postgres", "--version")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[2]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _file_system(folder: Path) -> str:
    """Return the type of the file system that holds a folder."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    holding = [fields for fields in mounts if folder.resolve().is_relative_to(fields[1])]
    return max(holding, key=lambda fields: len(fields[1]))[2] if holding else "unknown"


def _fsync_seconds(folder: Path) -> float:
    """Return the median time to append a page to a file and sync it."""
    taken = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(FSYNCS):
            file.write(PAGE)
            began = time.perf_counter()
            os.fsync(file)
            taken.append(time.perf_counter() - began)
    return median(taken)


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = " and changes" if git("status", "--porcelain", "--", "worker") else ""
    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{changed}"
