"""What every part of the benchmark uses."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.broker import Broker, broker_on
from tests.rabbitmq import RabbitMQNode

# Not in /tmp, which on many machines is in memory, where an fsync costs nothing.
DISK = Path("/var/tmp")

Result = dict[str, Any]
"""The figures of one part, as they are in the JSON file."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A private broker, a folder for databases, and a function that reports progress."""

    node: RabbitMQNode
    broker: Broker
    folder: Path
    say: Callable[[str], None]
    known: dict[str, float] = field(default_factory=dict)
    """What one part has measured and others also need."""


@asynccontextmanager
async def private_bench(say: Callable[[str], None]) -> AsyncIterator[Bench]:
    """Yield a bench, and remove it with everything on it after the block."""
    async with RabbitMQNode() as node:
        with TemporaryDirectory(prefix="projection-benchmark-", dir=DISK) as folder:
            yield Bench(node, await broker_on(node), Path(folder), say)
