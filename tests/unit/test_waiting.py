import asyncio
import os
import time

import pytest

from tests import waiting
from tests.waiting import LONGEST_STEP_SECONDS, Patience, crowding, patience, patiently


class Machine:
    """A machine whose clock and load the test controls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.load = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(os, "getloadavg", lambda: (self.load, 0.0, 0.0))
        monkeypatch.setattr(waiting, "CORES", 2)

    def outlasts(self, deadline: Patience, seconds: int) -> bool:
        """Advance the clock by some seconds; return whether the deadline is still ahead."""
        for _ in range(seconds):
            self.seconds += 1
            if deadline.is_over():
                return False
        return True


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


class TestPatience:
    def test_is_what_was_asked_for_on_a_quiet_machine(self, machine: Machine) -> None:
        """If every program has a core, seconds are seconds."""
        machine.load = 1.5

        assert (crowding(), patience(10)) == (1, 10)
        assert machine.outlasts(Patience(10), 10)
        assert not machine.outlasts(Patience(10), 11)

    def test_grows_with_the_load(self, machine: Machine) -> None:
        """Three programs per core make each of them take three times as long."""
        machine.load = 6

        assert (crowding(), patience(10)) == (3, 30)
        assert machine.outlasts(Patience(10), 29)
        assert not machine.outlasts(Patience(10), 31)

    def test_is_not_used_up_while_the_machine_stands_still(self, machine: Machine) -> None:
        """Nothing could have happened in that time."""
        deadline = Patience(2 * LONGEST_STEP_SECONDS)

        machine.seconds += 3_600

        assert not deadline.is_over()

    async def test_ends_a_block(self) -> None:
        """A block that waits for something that never happens gets an error that says so."""
        with pytest.raises(TimeoutError):
            async with patiently(0):
                await asyncio.Event().wait()

    async def test_leaves_a_block_alone_that_ends_by_itself(self) -> None:
        """This also holds for a block that raises an exception."""
        with pytest.raises(ZeroDivisionError):
            async with patiently():
                raise ZeroDivisionError
