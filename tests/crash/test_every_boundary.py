from collections import Counter
from pathlib import Path

import pytest

from tests.crash.one_batch import TRIES
from tests.crash.sweep import KILLED, sweep
from tests.strace import SYNC, require_strace


@pytest.fixture(autouse=True)
def strace() -> None:
    require_strace()


class TestAKill:
    @pytest.mark.parametrize("call", ["pwrite64", SYNC])
    @pytest.mark.parametrize("state", ["new", "closed", "killed"])
    async def test_at_any_call_leaves_the_whole_batch_or_none_of_it(
        self, tmp_path: Path, state: str, call: str
    ) -> None:
        """From opening the file to closing it, anything that is missing is projected again."""
        kills = sweep(tmp_path, state, f"{call}:signal=KILL:when={{}}", from_opening=True)
        codes = Counter([run.exit_code async for run in kills])

        # All but the last one were killed, and there were some.
        assert codes.pop(KILLED) >= (3 if call == SYNC else 10)
        assert codes == {0: 1}


class TestAnError:
    @pytest.mark.parametrize(
        "fault",
        [
            "pwrite64:error=ENOSPC:when={}",
            "pwrite64:error=EIO:when={}",
            f"{SYNC}:error=EIO:when={{}}",
            # Until another thread reopens the file.
            "pwrite64:error=EIO:when={}+",
            f"{SYNC}:error=EIO:when={{}}+",
        ],
    )
    async def test_at_any_call_costs_no_more_than_another_try(
        self, tmp_path: Path, fault: str
    ) -> None:
        """The batch is held, the file is reopened if necessary, and the batch commits."""
        runs = [run async for run in sweep(tmp_path, "closed", fault, from_opening=False)]

        assert Counter(run.exit_code for run in runs) == {0: len(runs)}
        # The first call belongs to the commit, the last ones to the closing.
        assert runs[0].said == ["held", "done"]
        for run in runs:
            assert run.said in (["done"], ["held", "done"]), run

    @pytest.mark.parametrize(
        "fault",
        [
            "pwrite64:error=ENOSPC:when={}+",
            "pwrite64:error=EIO:when={}+",
            f"{SYNC}:error=EIO:when={{}}+",
        ],
    )
    async def test_that_lasts_is_waited_for(self, tmp_path: Path, fault: str) -> None:
        """However often the file is reopened, nothing is reported as done that is not."""
        runs = [run async for run in sweep(tmp_path, "closed", fault, from_opening=True)]

        assert Counter(run.exit_code for run in runs) == {0: len(runs)}
        held = [run for run in runs if run.said == ["held"] * TRIES]
        assert held
        assert runs[-1].said == ["done"]
