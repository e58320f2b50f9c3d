"""What `check` and `topology` ask of the broker, each on a connection of its own."""

from worker.broker import claim
from worker.broker.connection import BrokerAddress, connection
from worker.broker.permissions import requiring
from worker.broker.topology import Topology, Verification

NAME = "projection-worker check"


async def reach(address: BrokerAddress) -> None:
    """Connect and leave; raises what `connection` raises."""
    async with connection(address, NAME):
        pass


async def verify(address: BrokerAddress, topology: Topology) -> Verification:
    """See that the worker's exchanges and queues exist as they must be; raises if not."""
    async with connection(address, NAME) as opened:
        return await topology.verify(opened)


async def apply(address: BrokerAddress, topology: Topology) -> None:
    """Make what is missing of the topology; raises `BrokerRefused` for what is otherwise."""
    async with connection(address, NAME) as opened, opened.channel() as channel:
        with requiring(topology.needed_to_apply, address, "make the exchanges and queues"):
            await topology.apply(channel)


async def owner(address: BrokerAddress, queue: str, file_id: str | None) -> str | None:
    """Return which database file the queue belongs to; returns and raises as `claim.owner` does."""
    async with connection(address, NAME) as opened:
        return await claim.owner(opened, queue, file_id)


async def release(address: BrokerAddress, queue: str) -> None:
    """Let another file have the queue; raises `BrokerRefused` while somebody consumes."""
    async with connection(address, NAME) as opened:
        await claim.release(opened, queue)
