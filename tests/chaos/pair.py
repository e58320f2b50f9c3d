"""A primary and its synchronous standby, which take each other's place again and again.

Workers reach both through relays, whose ports stay the same whichever node is behind them.
"""

import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from tests.disk import cannot_mount
from tests.postgres import PostgresDatabase, PostgresNode
from tests.postgres_standby import PostgresStandby
from tests.relay import Relay

# Room for a long run. What is left of it is filled by a fault.
DISK = "size=1g"
SETTINGS = {
    # So that the code of each error is in what the node writes.
    "log_error_verbosity": "verbose",
    # A standby that was away finds what it has missed.
    "wal_keep_size": "128MB",
    "max_wal_size": "128MB",
}
# A node that is away, or that goes away in the middle of a statement.
AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
ERROR = re.compile(r" (?:ERROR|FATAL|PANIC):  (\w{5}): ")


@dataclass(frozen=True, slots=True)
class Way:
    """How some of the workers reach the two nodes."""

    relays: tuple[Relay, Relay]

    def url(self, database: PostgresDatabase) -> str:
        """Return the address of a database, which names both nodes."""
        hosts = ",".join(f"127.0.0.1:{relay.port}" for relay in self.relays)
        return f"postgresql://{database.name}:{database.password}@{hosts}/{database.name}"


class Pair:
    """The two nodes, their database, and the ways to them."""

    def __init__(self, ways: Sequence[Way], folder: Path) -> None:
        """Let the ways lead to the nodes, once these have started.

        Their logs are kept in the folder.
        """
        self.ways = ways
        self._disk = None if cannot_mount("--mount") else DISK
        self.primary = PostgresNode(SETTINGS, disk=self._disk)
        self.standby = self._standby_of(self.primary)
        self._places = [self.primary, self.standby]
        """The nodes behind the first and the second relay of each way."""
        self._folder = folder
        self._nodes = 0

    @property
    def relays(self) -> list[Relay]:
        """Every relay."""
        return [relay for way in self.ways for relay in way.relays]

    async def start(self) -> PostgresDatabase:
        """Start both nodes; return a fresh database on them."""
        await self.primary.__aenter__()
        database = await self.primary.create_database()
        await self.standby.__aenter__()
        self._lead()
        return database

    async def remove(self) -> None:
        """End both nodes, and remove every trace."""
        for node in self._places:
            await self._remove(node)

    async def _remove(self, node: PostgresNode) -> None:
        self._nodes += 1
        if node.port:
            shutil.copy(node.console_file, self._folder / f"postgres-{self._nodes}.log")
        await node.__aexit__()

    async def succeed(self) -> None:
        """Replace the primary by the standby, which was promoted, and that one by a new standby."""
        self.primary, former = self.standby, self.primary
        place = self._places.index(former)
        await self._remove(former)
        self.standby = self._standby_of(self.primary)
        self._places[place] = self.standby
        await self.standby.__aenter__()
        self._lead()

    def errors(self) -> Counter[str]:
        """Return how often the nodes reported each code of an error so far."""
        logs = [*self._folder.glob("postgres-*.log"), *(n.console_file for n in self._places)]
        return Counter(
            code for log in logs for code in ERROR.findall(log.read_text(errors="replace"))
        )

    def _standby_of(self, primary: PostgresNode) -> PostgresStandby:
        return PostgresStandby(primary, SETTINGS, synchronous=True, disk=self._disk)

    def _lead(self) -> None:
        for way in self.ways:
            for relay, node in zip(way.relays, self._places, strict=True):
                relay.server_port = node.port


@asynccontextmanager
async def pair(ways: int, folder: Path) -> AsyncIterator[tuple[Pair, PostgresDatabase]]:
    """Hold a pair and its database, with so many ways to it."""
    async with AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(Relay(0)) for _ in range(2 * ways)]
        for relay in relays:
            await relay.listen()
        found = Pair([Way((relays[n], relays[n + 1])) for n in range(0, 2 * ways, 2)], folder)
        stack.push_async_callback(found.remove)
        yield found, await found.start()
