import ast
import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import worker
from tests.waiting import eventually, patiently, turns
from worker import tasks
from worker.tasks import end, first_of, in_time

SOURCE = Path(worker.__file__).parent
# Calls that cancel a task, or their own block, once. The first is found under any name.
CANCELLING = ("cancel", "timeout", "timeout_at", "wait_for", "TaskGroup")
ALLOWED = {
    ("service.py", "task.cancel()"): "It is the store's, or `in_time`: neither loses it.",
    ("broker/pages.py", "asyncio.timeout(DELIVERY_SECONDS)"): "Around a queue of our own.",
    ("telemetry/http.py", "asyncio.timeout(REQUEST_SECONDS)"): "Around asyncio's own streams.",
    ("store/postgres/connection.py", "asyncio.timeout(self._patience)"): "asyncpg loses none.",
    ("telemetry/http.py", "connection.cancel()"): "Nobody waits for it but for a bounded time.",
    ("telemetry/http.py", "oldest.cancel()"): "Nobody waits for it.",
    ("telemetry/summary.py", "self._timer.cancel()"): "A timer, and no task.",
}


class Deaf:
    """Work that swallows a number of cancellations, as the AMQP library does."""

    def __init__(self, times: int) -> None:
        self.left = times

    async def work(self) -> str:
        """Wait forever; return once it has been cancelled often enough."""
        while self.left:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.left -= 1
        return "late"

    def give_in(self) -> None:
        """End at the next cancellation, which may come from the test's loop."""
        self.left = min(1, self.left)


@pytest.fixture
def insistent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the second cancellation come as soon as possible."""
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0)


class TestEnd:
    @pytest.mark.parametrize("times", [1, 2, 3])
    @pytest.mark.usefixtures("insistent")
    async def test_cancels_until_the_task_has_ended(self, times: int) -> None:
        """If one cancellation is not enough, more follow."""
        task = asyncio.create_task(Deaf(times).work())
        await turns(1)

        await end(task)

        async with patiently():
            await task

    async def test_abandons_a_task_that_does_not_end(self) -> None:
        """The caller goes on; the task is cancelled further, and ends when it can."""
        deaf = Deaf(2)
        task = asyncio.create_task(deaf.work())
        await turns(1)

        await end(task)

        assert not task.done()
        assert deaf.left == 1
        await task

    async def test_drops_what_the_task_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """Otherwise asyncio would report an exception that was never retrieved."""

        async def fail() -> None:
            raise ZeroDivisionError

        task = asyncio.create_task(fail())
        await end(task)

        del task
        await turns(1)
        assert not caplog.records

    async def test_of_a_task_that_has_ended_is_nothing(self) -> None:
        """The task keeps its result."""
        task = asyncio.create_task(turns(0))
        await task

        await end(task)

        assert not task.cancelled()


class TestInTime:
    async def test_returns_what_the_work_returns(self) -> None:
        """The work ended within the time limit."""
        assert await in_time(asyncio.sleep(0, "done"), 10) == "done"  # noqa: TID251 - takes no time

    async def test_raises_what_the_work_raises(self) -> None:
        """The work ended by itself."""

        async def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await in_time(fail(), 10)

    @pytest.mark.parametrize("times", [0, 1, 2])
    @pytest.mark.usefixtures("insistent")
    async def test_ends_what_takes_longer(self, times: int) -> None:
        """This includes work that swallows the first cancellation and then returns a value."""
        before = asyncio.all_tasks()

        with pytest.raises(TimeoutError):
            await in_time(Deaf(times).work() if times else asyncio.Event().wait(), 0)

        await eventually(lambda: asyncio.all_tasks() == before)

    async def test_gives_up_what_does_not_end(self) -> None:
        """The work is abandoned, and the caller learns that it took too long."""
        deaf = Deaf(20)

        with pytest.raises(TimeoutError):
            await in_time(deaf.work(), 0)

        assert deaf.left > 1
        deaf.give_in()

    @pytest.mark.parametrize("times", [1, 20])
    async def test_ends_with_a_caller_that_is_cancelled_once(self, times: int) -> None:
        """One cancellation of the caller is enough, however many the work swallows."""
        deaf = Deaf(times)
        caller = asyncio.create_task(in_time(deaf.work(), 3_600))
        await turns(2)

        caller.cancel()

        with pytest.raises(asyncio.CancelledError):
            await caller
        deaf.give_in()

    async def test_drops_what_the_work_raises_as_the_caller_is_cancelled(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Both may happen in one turn of the loop, and nobody is left to handle the error."""
        work = asyncio.get_running_loop().create_future()
        caller = asyncio.create_task(in_time(work, 3_600))
        await turns(1)

        work.set_exception(ZeroDivisionError())
        caller.cancel()
        await asyncio.wait({caller})

        assert caller.cancelled()
        del work, caller
        gc.collect()
        assert not caplog.records


def cancelling() -> Iterator[tuple[str, str]]:
    """Return every call that cancels, with its file."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.attr if isinstance(called, ast.Attribute) else None
            name = called.id if isinstance(called, ast.Name) else name
            if name in CANCELLING:
                yield path.relative_to(SOURCE).as_posix(), ast.unparse(node)


class TestTheFirstOfSeveral:
    """Several attempts start one after the other, and one success is enough."""

    async def test_is_not_held_up_by_one_that_hangs(self) -> None:
        """The next attempt starts beside it, and it is ended."""
        hanging = Deaf(2)

        assert await first_of([hanging.work, prompt], 0.0, OSError, unexpected) == "prompt"

        await eventually(lambda: not hanging.left)

    async def test_begins_at_once_where_one_has_failed(self) -> None:
        """The delay is only for attempts that hang."""
        assert await first_of([failing, failing, prompt], 3_600, OSError, unexpected) == "prompt"

    async def test_fails_with_all_failures(self) -> None:
        """Any of them may be the relevant one."""
        with pytest.raises(ExceptionGroup) as failed:
            await first_of([failing, failing], 0.0, OSError, unexpected)

        assert [str(each) for each in failed.value.exceptions] == ["refused", "refused"]

    async def test_raises_at_once_what_is_no_failure(self) -> None:
        """If a broker refuses, no other address is tried."""
        with pytest.raises(OSError, match="refused"):
            await first_of([failing, prompt], 3_600, LookupError, unexpected)

    async def test_discards_what_the_others_return(self) -> None:
        """Nobody else would close a late or simultaneous result."""
        discarded: list[str] = []
        late = Deaf(1)

        await first_of([late.work, prompt], 0.0, OSError, discarded.append)

        await eventually(lambda: discarded == ["late"])


async def prompt() -> str:
    return "prompt"


async def failing() -> str:
    raise OSError("refused")


def unexpected(result: str) -> None:
    assert result == "late"


class TestTheSource:
    def test_counts_on_no_single_cancellation(self) -> None:
        """Only `worker.tasks` cancels, except for these places, where it is safe."""
        assert {call for call in cancelling() if call[0] != "tasks.py"} == set(ALLOWED)
