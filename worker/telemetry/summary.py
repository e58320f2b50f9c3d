"""One line for many batches: their outcomes, at most once in so many seconds."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from worker.deliveries import BatchReport, Verdict


class Summary:
    """Adds up batch reports, and reports the sum some time after the first of them."""

    def __init__(self, seconds: float, report: Callable[[dict[str, int | float]], None]) -> None:
        """Call `report` with the fields of the line."""
        self._seconds = seconds
        self._report = report
        self._timer: asyncio.TimerHandle | None = None
        self._batches = 0
        self._verdicts: Counter[Verdict] = Counter()
        self._commit_seconds = 0.0

    def add(self, batch: BatchReport) -> None:
        """Count a committed batch."""
        self._batches += 1
        self._verdicts.update(batch.verdicts)
        self._commit_seconds = max(self._commit_seconds, batch.commit_seconds)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self.flush)

    def flush(self) -> None:
        """Report what has been counted, if anything has."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        fields: dict[str, int | float] = {
            "messages": self._verdicts.total(),
            "batches": self._batches,
            "longest_commit_seconds": round(self._commit_seconds, 4),
        }
        self._report(fields | verdict_fields(self._verdicts))
        self._batches = 0
        self._verdicts.clear()
        self._commit_seconds = 0.0


def verdict_fields(verdicts: Mapping[Verdict, int]) -> dict[str, int]:
    """Return verdict -> number, without zeros."""
    return {verdict.value: verdicts[verdict] for verdict in Verdict if verdicts.get(verdict)}
