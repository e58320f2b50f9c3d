"""The stage: the parts of a run that faults act on, and what they all know of a fault."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Generic, TypeVar

from tests.chaos.fleet import Fleet
from tests.chaos.ledger import Ledger
from tests.chaos.traffic import Traffic
from tests.chaos.verdict import Check
from tests.chaos.witness import Witness
from tests.proxy import Proxy
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.servers import NodeFailed


@dataclass(kw_only=True)
class Stage:
    """The parts that every run has, whatever the workers' store."""

    folder: Path
    """All files of the run."""
    node: RabbitMQNode
    queues: Queues
    proxies: Sequence[Proxy]
    """Each is the way to the broker of some of the workers; of all, if it is the only one."""
    fleet: Fleet
    workers: int
    """How many workers run at the beginning."""
    ledger: Ledger
    traffic: Traffic
    witness: Witness
    secrets: Sequence[str]
    """Passwords, which must be in no output."""
    injected: Counter[str] = field(default_factory=Counter)

    async def ctl(self, *arguments: str) -> None:
        """Run a command on the broker, and ignore that it may be down."""
        with suppress(NodeFailed):
            await self.node.ctl(*arguments)

    async def healed(self) -> list[Check]:
        """Check what must be true once no fault is left, while workers still run."""
        return []

    async def ended(self) -> list[Check]:
        """Check what must be true of the whole run."""
        return []

    def counted(self) -> dict[str, int]:
        """Return further numbers for information."""
        return {}


S_contra = TypeVar("S_contra", bound=Stage, contravariant=True)


@dataclass(frozen=True, slots=True)
class Fault(Generic[S_contra]):
    """A fault on one kind of stage, and what the choice of faults needs to know of it."""

    happens: Callable[[S_contra, Random], Awaitable[None]]
    """Causes a failure, lets it last, and undoes it, however it is ended."""
    to: str
    """What it acts on; simultaneous faults act on different things."""
    weight: int
    is_usual: bool = True
    """Whether it is chosen by default."""
    longest: float = 0
    """In seconds; a fault is not chosen if it would take more than a tenth of the run."""
    needs: Callable[[], bool] = lambda: True
    """Whether this machine can do it."""
