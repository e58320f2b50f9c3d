"""What `check` asks the broker; makes nothing."""

from worker.broker.publisher import connection
from worker.broker.topology import Topology

NAME = "projection-worker check"


async def reach(url: str) -> None:
    """Connect and leave; raises what `connection` raises."""
    async with connection(url, NAME):
        pass


async def is_declared(url: str, topology: Topology) -> bool:
    """Tell whether the worker's exchanges and queues exist, as they must be.

    Raises `BrokerRefused` if one exists otherwise.
    """
    async with connection(url, NAME) as opened:
        if not await topology.exists(await opened.channel()):
            return False
        # Declaring what exists changes nothing; the broker refuses what differs.
        await topology.declare(await opened.channel())
        return True
