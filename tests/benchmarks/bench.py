"""What every part of the benchmark works with."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.broker import Broker, broker_on
from tests.rabbitmq import RabbitMQNode

Result = dict[str, Any]
"""What one part has measured, as it stands in the JSON file."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A broker of our own, a folder for databases, and somebody who is told how it goes."""

    node: RabbitMQNode
    broker: Broker
    folder: Path
    say: Callable[[str], None]
    known: dict[str, float] = field(default_factory=dict)
    """What one part has found and others need, too."""


@asynccontextmanager
async def private_bench(say: Callable[[str], None]) -> AsyncIterator[Bench]:
    """Hold a bench that is gone, with everything on it, after the block."""
    async with RabbitMQNode() as node:
        # Not /tmp, which is in memory on many machines, where an fsync costs nothing.
        with TemporaryDirectory(prefix="projection-benchmark-", dir="/var/tmp") as folder:
            yield Bench(node, await broker_on(node), Path(folder), say)
