"""What a run needs to know of the workers' store: how its stage is set, and its faults."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Generic, TypeVar

from tests.chaos.ledger import Ledger
from tests.chaos.stage import Fault, Stage
from tests.rabbitmq import RabbitMQNode

S = TypeVar("S", bound=Stage)


@dataclass(frozen=True, slots=True)
class Setting:
    """What there is before the stage is set."""

    node: RabbitMQNode
    folder: Path
    ledger: Ledger
    rng: Random
    options: Mapping[str, object]
    """Settings of all workers."""


@dataclass(frozen=True, slots=True)
class Engine(Generic[S]):
    """A kind of stage."""

    staged: Callable[[Setting], AbstractAsyncContextManager[S]]
    """Holds a stage whose workers have not started yet."""
    faults: Mapping[str, Fault[S]]
    seconds_each: float
    """How long a run is for each of its faults, at least."""
    broker: str = ""
    """Further lines of the broker's rabbitmq.conf."""


def fitting(engine: Engine[S], seconds: float, seed: int) -> list[str]:
    """Return the faults that leave time for others in a run of this length.

    If there are more than come once in that time, the seed chooses.
    """
    usual = [
        name
        for name, fault in engine.faults.items()
        if fault.is_usual and fault.longest <= seconds / 10 and fault.needs()
    ]
    number = min(len(usual), round(seconds / engine.seconds_each))
    return Random(seed).sample(usual, number)
