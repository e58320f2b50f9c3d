"""The two servers of the demo, which nobody else uses, and what the demo sees in them.

Promise: both are started for this run, and no trace of them is left when the block ends.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aio_pika
import asyncpg

from tests.demo.broker import DELIVERY_LIMIT, Broker, Say, install
from tests.demo.commands import settings_of
from tests.demo.readmodel import ReadModel
from tests.oracle import COLUMNS
from tests.postgres import PostgresDatabase, PostgresNode
from tests.postgres_programs import server_programs
from tests.rabbitmq import RabbitMQNode, server_program, version
from worker.broker.partitions import Ranking, queue_of
from worker.broker.topology import Topology

EXCHANGE, QUEUE = "demo", "demo.projection"
COUNT = "SELECT count(*) FROM projection.log"
ROWS = f'SELECT {", ".join(COLUMNS)} FROM projection.events ORDER BY event_id COLLATE "C"'
LOG = "SELECT event_id, id, body FROM projection.messages"
LATE = "SELECT count(*) FROM projection.messages WHERE is_late <> 0"
ORPHANS = """
    SELECT count(*) FROM projection.messages
    WHERE event_id NOT IN (SELECT event_id FROM projection.events)
"""


@dataclass(frozen=True, slots=True)
class Servers:
    """A broker and a database."""

    node: RabbitMQNode
    broker: Broker
    database: PostgresDatabase

    def settings(self, folder: Path, partitions: int) -> dict[str, str]:
        """Return the environment of a worker."""
        settings = settings_of(self.node.url, self.broker.topology, folder / "unused")
        return settings | {
            "WORKER_DATABASE": self.database.url,
            "WORKER_PARTITIONS": str(partitions),
        }

    async def count_log(self) -> int:
        """Return how many messages are in the log; 0 before there is one."""
        try:
            [(count,)] = await self.database.query(COUNT)
        except asyncpg.UndefinedTableError:
            return 0
        return int(count)

    async def read(self) -> ReadModel:
        """Read everything, as any client of PostgreSQL reads it."""
        query = self.database.query
        [(late,)], [(orphans,)] = await query(LATE), await query(ORPHANS)
        log = {(event_id, id_): body.encode() for event_id, id_, body in await query(LOG)}
        return ReadModel(rows=await query(ROWS), log=log, late=late, orphans=orphans)

    async def queues(self) -> dict[str, int]:
        """Return how many messages each of the workers' queues has, unacked ones included."""
        listed = await self.node.ctl("list_queues", "name", "messages", "--formatter", "json")
        return {
            each["name"]: each["messages"]
            for each in json.loads(listed)
            if each["name"].startswith(f"{QUEUE}.") and each["name"].rpartition(".")[2].isdigit()
        }

    async def consumers(self, workers: Iterable[Ranking], sizes: Iterable[int]) -> list[str]:
        """Return which worker consumes from each queue, in their order; "nobody" if none does.

        The broker says so: the active consumer has the priority that its worker gave it, by one of
        these numbers of partitions.
        """
        columns = ("queue_name", "active", "arguments")
        listed = json.loads(await self.node.ctl("list_consumers", *columns, "--formatter", "json"))
        ranks = {
            (queue_of(QUEUE, partition), worker.rank(partition, size)): worker.worker
            for worker in workers
            for size in sizes
            for partition in range(size)
        }
        found = {}
        for each in listed:
            priority = {name: value for name, _, value in each["arguments"]}.get("x-priority", 0)
            if each["active"] and (name := ranks.get((each["queue_name"], priority // 2))):
                found[each["queue_name"]] = name
        return [found.get(queue, "nobody") for queue in sorted(await self.queues())]


def shares(consumers: Iterable[str]) -> str:
    """Return how many partitions each worker consumes from, as a sentence."""
    numbers = sorted(Counter(consumers).items())
    return ", ".join(f"{name}: {number}" for name, number in numbers)


@asynccontextmanager
async def servers(say: Say) -> AsyncIterator[Servers]:
    """Start both servers; install them first where they are missing."""
    if server_program() is None or server_programs() is None:
        say("RabbitMQ or PostgreSQL is not installed here; installing them ...")
        await install()
    number = ".".join(map(str, version()))
    say(f"Starting a RabbitMQ {number} and a PostgreSQL that nobody else uses ...")
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(RabbitMQNode())
        postgres = await stack.enter_async_context(PostgresNode())
        database = await postgres.create_database()
        connection = await stack.enter_async_context(await aio_pika.connect(node.url))
        topology = Topology(EXCHANGE, QUEUE, DELIVERY_LIMIT)
        yield Servers(node, Broker(node.url, topology, await connection.channel()), database)
