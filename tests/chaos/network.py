"""The faults of a network: the ways of the workers to a server, which may be any server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Generic

from tests.chaos.moments import pause
from tests.chaos.stage import Fault, S_contra
from tests.relay import Relay, Way


@dataclass(frozen=True, slots=True)
class Network(Generic[S_contra]):
    """The relays to a server; each fault hits some of them."""

    prefix: str
    """What the names of its faults begin with."""
    relays_of: Callable[[S_contra], Sequence[Relay]]

    def faults(self, to: str) -> dict[str, Fault[S_contra]]:
        """Return its faults by name."""
        return {
            f"{self.prefix}cut": Fault(self.cut, to, 3),
            f"{self.prefix}reset": Fault(self.reset, to, 3),
            f"{self.prefix}stall": Fault(self.stall, to, 3),
            f"{self.prefix}long_stall": Fault(self.long_stall, to, 1, longest=45),
            f"{self.prefix}hang_up": Fault(self.hang_up, to, 2),
        }

    async def cut(self, stage: S_contra, rng: Random) -> None:
        """Close every connection."""
        for _ in range(rng.randrange(1, 5)):
            for relay in self._some(stage, rng, "cut"):
                relay.cut()
            await pause(rng.uniform(0.1, 1.5))

    async def reset(self, stage: S_contra, rng: Random) -> None:
        """Reset every connection."""
        for _ in range(rng.randrange(1, 5)):
            for relay in self._some(stage, rng, "reset"):
                relay.reset()
            await pause(rng.uniform(0.1, 1.5))

    async def stall(self, stage: S_contra, rng: Random) -> None:
        """Hold up all traffic, one way or both, for less than it takes to be noticed."""
        await self._stall(self._some(stage, rng, "stall"), rng, rng.uniform(0.5, 8))

    async def long_stall(self, stage: S_contra, rng: Random) -> None:
        """Hold up all traffic for longer than three heartbeats."""
        await self._stall(self._some(stage, rng, "long_stall"), rng, rng.uniform(34, 42))

    async def _stall(self, relays: Sequence[Relay], rng: Random, seconds: float) -> None:
        ways = rng.choice([(), (Way.TO_SERVER,), (Way.TO_WORKER,)])
        try:
            for relay in relays:
                relay.stall(*ways)
            await pause(seconds)
        finally:
            for relay in relays:
                relay.flow()

    async def hang_up(self, stage: S_contra, rng: Random) -> None:
        """Close every connection, and for a while every new one as soon as it opens."""
        relays = self._some(stage, rng, "hang_up")
        try:
            for relay in relays:
                relay.hangs_up = True
                relay.cut()
            await pause(rng.uniform(0.5, 4))
        finally:
            for relay in relays:
                relay.hangs_up = False

    def _some(self, stage: S_contra, rng: Random, name: str) -> Sequence[Relay]:
        """Count the fault, and choose at least one relay."""
        stage.injected[f"{self.prefix}{name}"] += 1
        relays = self.relays_of(stage)
        return rng.sample(relays, rng.randint(1, len(relays)))
