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
# What cancels a task, or a task's own block, once; the first by any name that it is called by.
CANCELLING = ("cancel", "timeout", "timeout_at", "wait_for", "TaskGroup")
ALLOWED = {
    ("service.py", "task.cancel()"): "It is the store's, or `in_time`: neither loses it.",
    ("broker/pages.py", "asyncio.timeout(DELIVERY_SECONDS)"): "Around a queue of our own.",
    ("telemetry/http.py", "asyncio.timeout(REQUEST_SECONDS)"): "Around asyncio's own streams.",
    ("telemetry/http.py", "connection.cancel()"): "Nobody waits for it but for a bounded time.",
    ("telemetry/http.py", "oldest.cancel()"): "Nobody waits for it.",
    ("telemetry/summary.py", "self._timer.cancel()"): "A timer, and no task.",
}


class Deaf:
    """Work that takes so many cancellations for something else, as the AMQP library does."""

    def __init__(self, times: int) -> None:
        self.left = times

    async def work(self) -> str:
        """Wait for ever; return if it is cancelled often enough."""
        while self.left:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.left -= 1
        return "late"

    def give_in(self) -> None:
        """End with the next cancellation, which may be that of the test's loop."""
        self.left = min(1, self.left)


@pytest.fixture
def insistent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a second cancellation come as soon as it can."""
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0)


class TestEnd:
    @pytest.mark.parametrize("times", [1, 2, 3])
    @pytest.mark.usefixtures("insistent")
    async def test_cancels_until_the_task_has_ended(self, times: int) -> None:
        """One cancellation is not enough for it, and is not all that there is."""
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
        """Asyncio would report an exception that nobody has seen."""

        async def fail() -> None:
            raise ZeroDivisionError

        task = asyncio.create_task(fail())
        await end(task)

        del task
        await turns(1)
        assert not caplog.records

    async def test_of_a_task_that_has_ended_is_nothing(self) -> None:
        """It stays what it was."""
        task = asyncio.create_task(turns(0))
        await task

        await end(task)

        assert not task.cancelled()


class TestInTime:
    async def test_returns_what_the_work_returns(self) -> None:
        """It took less."""
        assert await in_time(asyncio.sleep(0, "done"), 10) == "done"  # noqa: TID251 - takes no time

    async def test_raises_what_the_work_raises(self) -> None:
        """It ended by itself."""

        async def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await in_time(fail(), 10)

    @pytest.mark.parametrize("times", [0, 1, 2])
    @pytest.mark.usefixtures("insistent")
    async def test_ends_what_takes_longer(self, times: int) -> None:
        """Also what loses the first cancellation and returns something after all."""
        before = asyncio.all_tasks()

        with pytest.raises(TimeoutError):
            await in_time(Deaf(times).work() if times else asyncio.Event().wait(), 0)

        await eventually(lambda: asyncio.all_tasks() == before)

    async def test_gives_up_what_does_not_end(self) -> None:
        """It is abandoned, and the caller told that it took too long."""
        deaf = Deaf(20)

        with pytest.raises(TimeoutError):
            await in_time(deaf.work(), 0)

        assert deaf.left > 1
        deaf.give_in()

    @pytest.mark.parametrize("times", [1, 20])
    async def test_ends_with_a_caller_that_is_cancelled_once(self, times: int) -> None:
        """However deaf the work is: this is what makes one cancellation of the caller enough."""
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
        """Both may come in one turn of the loop, and nobody is left to hear of it."""
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
    """Give every call that cancels, with the file that it stands in."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.attr if isinstance(called, ast.Attribute) else None
            name = called.id if isinstance(called, ast.Name) else name
            if name in CANCELLING:
                yield path.relative_to(SOURCE).as_posix(), ast.unparse(node)


class TestTheFirstOfSeveral:
    """Attempts that begin one after the other, of which one is enough."""

    async def test_is_not_held_up_by_one_that_hangs(self) -> None:
        """The next one begins beside it, and it is ended."""
        hanging = Deaf(2)

        assert await first_of([hanging.work, prompt], 0.0, OSError, unexpected) == "prompt"

        await eventually(lambda: not hanging.left)

    async def test_begins_at_once_where_one_has_failed(self) -> None:
        """A delay is for those that hang."""
        assert await first_of([failing, failing, prompt], 3_600, OSError, unexpected) == "prompt"

    async def test_fails_with_all_failures(self) -> None:
        """Any of them may be the one that matters."""
        with pytest.raises(ExceptionGroup) as failed:
            await first_of([failing, failing], 0.0, OSError, unexpected)

        assert [str(each) for each in failed.value.exceptions] == ["refused", "refused"]

    async def test_raises_at_once_what_is_no_failure(self) -> None:
        """A broker that says no is not asked at another address."""
        with pytest.raises(OSError, match="refused"):
            await first_of([failing, prompt], 3_600, LookupError, unexpected)

    async def test_discards_what_the_others_return(self) -> None:
        """Late or at the same time: nobody else would close it."""
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
        """Only `worker.tasks` cancels, but for these places, where it is safe."""
        assert {call for call in cancelling() if call[0] != "tasks.py"} == set(ALLOWED)
