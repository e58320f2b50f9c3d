import asyncio

import pytest

from tests.waiting import patiently
from worker.deliveries import BatchReport, Delivery, Outcome, Reason, Rejected, Verdict
from worker.telemetry.summary import Summary, verdict_fields

Fields = dict[str, int | float]
REJECTED = Rejected(Reason.NOT_JSON, "no")
LONG = 3_600.0


def batch(*verdicts: str, seconds: float = 0.5) -> BatchReport:
    outcomes = [
        Outcome(Delivery(b""), Verdict(v), REJECTED if v == "rejected" else None) for v in verdicts
    ]
    return BatchReport.of(outcomes, seconds)


class TestSummary:
    async def test_adds_up_batches(self) -> None:
        """One line reports what many batches did."""
        lines: list[Fields] = []
        summary = Summary(LONG, lines.append)

        summary.add(batch("applied", "applied", "late", seconds=0.25))
        summary.add(batch("applied", "rejected", seconds=1.23456))
        summary.add(batch("duplicate", seconds=0.5))
        summary.flush()

        assert lines == [
            {
                "messages": 6,
                "batches": 3,
                "longest_commit_seconds": 1.2346,
                "applied": 3,
                "late": 1,
                "duplicate": 1,
                "rejected": 1,
            }
        ]

    async def test_begins_again_after_a_line(self) -> None:
        """What has been reported is not reported again."""
        lines: list[Fields] = []
        summary = Summary(LONG, lines.append)
        summary.add(batch("late", seconds=9.0))
        summary.flush()

        summary.add(batch("applied"))
        summary.flush()

        second = {"messages": 1, "batches": 1, "longest_commit_seconds": 0.5, "applied": 1}
        assert lines[1:] == [second]

    async def test_says_nothing_about_nothing(self) -> None:
        """An idle worker writes no lines."""
        lines: list[Fields] = []
        summary = Summary(LONG, lines.append)

        summary.flush()
        summary.add(batch("applied"))
        summary.flush()
        summary.flush()

        assert len(lines) == 1

    async def test_comes_by_itself_after_its_time(self) -> None:
        """The first batch starts the clock, and each line restarts it."""
        lines: asyncio.Queue[Fields] = asyncio.Queue()
        summary = Summary(0.001, lines.put_nowait)

        for number in (1, 2):
            summary.add(batch(*["applied"] * number))
            summary.add(batch("orphan"))
            async with patiently():
                line = await lines.get()

            assert line["messages"] == number + 1
        assert lines.empty()

    async def test_comes_once_for_its_time(self) -> None:
        """However many batches there are, no line comes early."""
        lines: list[Fields] = []
        summary = Summary(LONG, lines.append)

        for _ in range(100):
            summary.add(batch("applied"))

        assert lines == []
        summary.flush()
        assert len(lines) == 1


class TestVerdictFields:
    @pytest.mark.parametrize("verdict", Verdict)
    def test_leave_out_zeros(self, verdict: Verdict) -> None:
        """A line shows what happened, in the order of the verdicts."""
        assert verdict_fields({verdict: 2}) == {verdict.value: 2}
        assert verdict_fields(dict.fromkeys(Verdict, 0)) == {}
