"""Chooses the faults. The seed determines which, in which order, and how long each lasts."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from random import Random

from tests.chaos.engine import S
from tests.chaos.moments import pause
from tests.chaos.stage import Fault


@dataclass(frozen=True, slots=True)
class Step:
    """Faults that happen together: one begins during the recovery from another."""

    number: int
    faults: tuple[str, ...]
    seed: int
    is_first: bool
    """Whether its kind has not come before."""

    async def happen(self, stage: S, faults: Mapping[str, Fault[S]]) -> None:
        """Run all its faults, and return when they are undone."""
        async with asyncio.TaskGroup() as together:
            for name in self.faults:
                rng = Random(f"{self.seed}/{self.number}/{name}")
                together.create_task(self._after_a_moment(faults[name], name, stage, rng))

    async def _after_a_moment(self, fault: Fault[S], name: str, stage: S, rng: Random) -> None:
        if name != self.faults[0]:
            await pause(rng.uniform(0, 2))
        await fault.happens(stage, rng)


def steps(seed: int, chosen: Mapping[str, Fault[S]]) -> Iterator[Step]:
    """Yield steps without end; the same for the same seed and choice of faults."""
    rng = Random(seed)
    # Each kind comes once before the random choice, so that a short run has them all.
    first = sorted(chosen, key=lambda name: (chosen[name].to == "broker", rng.random()))
    for number in count(1):
        name = first[number - 1] if number <= len(first) else _choose(rng, chosen)
        companion = _companion(rng, name, chosen)
        yield Step(number, (name, *companion), seed, is_first=number <= len(first))


def _companion(rng: Random, name: str, chosen: Mapping[str, Fault[S]]) -> list[str]:
    """Return the simultaneous fault: mostly kills, sometimes another, sometimes none."""
    chance = rng.random()
    if chance < 0.1:
        return []
    if chance < 0.85 and "kill" in chosen and name not in ("kill", "long_stall"):
        return ["kill"]
    others = {each: fault for each, fault in chosen.items() if fault.to != chosen[name].to}
    return [_choose(rng, others)] if others and chance >= 0.85 else []


def _choose(rng: Random, among: Mapping[str, Fault[S]]) -> str:
    return rng.choices(list(among), weights=[fault.weight for fault in among.values()])[0]


async def torment(
    stage: S,
    faults: Mapping[str, Fault[S]],
    seed: int,
    seconds: float,
    say: Callable[[str], Awaitable[None]],
) -> None:
    """Run one step after the other until the time is over and each kind has come once."""
    begin = time.monotonic()
    for step in steps(seed, faults):
        now = time.monotonic() - begin
        if now > seconds and not step.is_first:
            return
        await say(f"{now:5.0f} s  step {step.number}: {' and '.join(step.faults)}")
        await step.happen(stage, faults)
        await pause(Random(f"{step.seed}/{step.number}").uniform(0, 1.5))
