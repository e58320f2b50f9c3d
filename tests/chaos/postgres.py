"""The run with PostgreSQL and partitions: several workers, and everything that may happen to them.

The workers come to the broker and to the database in two ways, so that a fault of the network hits
some of them or all.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tests.chaos.broker_user import broker_user
from tests.chaos.engine import Engine, Setting
from tests.chaos.faults import COMMON
from tests.chaos.fleet import Fleet
from tests.chaos.pair import pair
from tests.chaos.postgres_faults import POSTGRES_FAULTS
from tests.chaos.postgres_stage import PostgresStage
from tests.chaos.postgres_witness import PostgresWitness
from tests.chaos.scale_faults import MOST_WORKERS, SCALE_FAULTS
from tests.chaos.traffic import Traffic
from tests.processes import environment
from tests.proxy import Proxy
from tests.queues import Queues

WAYS = 2
WORKERS = 3
PARTITIONS = 6


@asynccontextmanager
async def staged(setting: Setting) -> AsyncIterator[PostgresStage]:
    """Hold a stage whose workers have not started yet."""
    node, folder = setting.node, setting.folder
    queues = Queues(node.url)
    user = await broker_user(node)
    async with AsyncExitStack() as stack:
        nodes, database = await stack.enter_async_context(pair(WAYS, folder))
        proxies = [await stack.enter_async_context(Proxy(node.port)) for _ in range(WAYS)]
        for proxy in proxies:
            await proxy.listen()
        witness = PostgresWitness(nodes, database.name)
        stack.push_async_callback(witness.close)
        # In the manner of a StatefulSet. Before RabbitMQ 4.0, the others would only stand by.
        places = [
            {
                "WORKER_ORDINAL": str(number),
                "WORKER_AMQP_URL": user.url_through(proxies[number % WAYS]),
                "WORKER_DATABASE": nodes.ways[number % WAYS].url(database),
            }
            for number in range(MOST_WORKERS)
        ]
        settings = queues.settings | {"secrets_dir": folder, "partitions": PARTITIONS}
        common = environment(**settings, **setting.options)
        yield PostgresStage(
            folder=folder,
            node=node,
            queues=queues,
            proxies=proxies,
            fleet=Fleet(common | places[0], folder, places),
            workers=WORKERS,
            ledger=setting.ledger,
            traffic=Traffic(setting.rng, witness.is_in_log),
            witness=witness,
            secrets=(user.password, database.password),
            pair=nodes,
            database_name=database.name,
            partitions=PARTITIONS,
        )


# Since 4.0, a broker that goes down while a partition moves to a consumer with a higher priority
# keeps the old consumer for ever (seen on 4.3.6). Once that is the active one, the partition stands
# still until the message that it got has waited for this long, by default half an hour.
BROKER = "consumer_timeout = 60000\n"

POSTGRES = Engine(
    staged, {**COMMON, **POSTGRES_FAULTS, **SCALE_FAULTS}, seconds_each=7, broker=BROKER
)
