"""The private PostgreSQL node of a part, and what its processes cost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.bench import DISK
from tests.benchmarks.usage import cpu_seconds, reaped_seconds
from tests.oracle import COLUMNS
from tests.postgres import PostgresDatabase, PostgresNode
from tests.servers import children
from worker.settings import Settings

# Commits are as safe as PostgreSQL's defaults make them. Memory, and how much is written between
# two checkpoints, are those of a small server: the defaults are for the smallest of machines.
SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB", "wal_buffers": "16MB"}

SCHEMA: str = Settings.model_fields["database_schema"].default
ROWS = f"SELECT {', '.join(COLUMNS)} FROM {SCHEMA}.events ORDER BY event_id"

# What a process of the server calls itself, behind its cluster's name; sessions have other titles.
BACKGROUND = (
    "autovacuum",
    "background",
    "checkpointer",
    "io worker",
    "logical replication",
    "startup",
    "walwriter",
)


@dataclass(frozen=True, slots=True)
class ServerCPU:
    """The CPU time of a server's processes so far, in seconds."""

    sessions: float
    """Of the processes that serve clients."""
    background: float
    """Of all others: checkpoints, the write-ahead log, vacuum, and processes that have ended."""

    @property
    def total(self) -> float:
        """The sum."""
        return self.sessions + self.background

    def __sub__(self, before: "ServerCPU") -> "ServerCPU":
        """Return what was used since."""
        return ServerCPU(self.sessions - before.sessions, self.background - before.background)


class Postgres:
    """A node with a database for each contender."""

    def __init__(self, node: PostgresNode) -> None:
        """Use a running node."""
        self.node = node

    def cpu(self, without: int | None = None) -> ServerCPU:
        """Return the CPU time so far, without that of the process that serves the observer."""
        seconds = {"sessions": 0.0, "background": 0.0}
        for pid in {*children(self.node.pid)} - {without}:
            # It may have ended since.
            with suppress(OSError):
                seconds[_kind(pid)] += cpu_seconds(pid)
        parent = cpu_seconds(self.node.pid) + reaped_seconds(self.node.pid)
        return ServerCPU(seconds["sessions"], seconds["background"] + parent)

    async def wal_bytes(self) -> int:
        """Return how much has been written to the write-ahead log so far."""
        [(found,)] = await self.node.query("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        return int(found)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[PostgresDatabase]:
        """Yield an empty database, and drop it after the block."""
        database = await self.node.create_database()
        yield database
        await self.node.drop_database(database)


def _kind(pid: int) -> str:
    title = Path(f"/proc/{pid}/cmdline").read_text().partition(": ")[2].partition(": ")[2]
    return "background" if title.startswith(BACKGROUND) else "sessions"


@asynccontextmanager
async def private_postgres() -> AsyncIterator[Postgres]:
    """Yield a server, and remove it with everything on it after the block."""
    # Its folder belongs to another user, who may not enter the bench's.
    async with PostgresNode(SETTINGS, parent=DISK) as node:
        yield Postgres(node)
