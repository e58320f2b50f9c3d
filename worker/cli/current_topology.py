"""The topology as it is now: the number of partitions stands in the database."""

from pathlib import Path

from worker.broker.topology import Topology
from worker.broker_settings import topology_of
from worker.settings import Settings
from worker.store.engines import store_of


async def current_topology(settings: Settings) -> Topology:
    """Return the topology; before the first start, with as many partitions as the settings say.

    Raises `StoreUnusable` and `StoreUnavailable` if the database cannot say it.
    """
    if isinstance(settings.database, Path):
        return topology_of(settings)
    store = store_of(settings.store)
    number = None
    if await store.exists():
        async with store.reader() as reader:
            number = await reader.partitions()
    return topology_of(settings, number)
