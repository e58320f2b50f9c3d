"""The breaker: stops the worker when a kind fails for every message, as after a bad deployment.

A message counts as failed when it is rejected because its handler failed. When a limit of messages
of one kind have failed in a row, the breaker opens, and their batch is held instead of being
dead-lettered. The limit is

- `WORKER_BREAKER_FAILURES` (25), if no message of the kind has been applied since the start: few
  enough to requeue by hand, but more than one mistaken publisher sends before somebody looks.
- `FAILURES_OF_A_PROVEN_KIND` (1,000) otherwise: the handler works, so a burst of bad messages is
  more likely than a bad deployment, and must not hold up all other messages.

A message that is redelivered counts once. A batch in which any message of the kind is applied, or
was applied earlier (a duplicate), resets the count to zero. So a few bad messages hold up nobody,
and no kind makes more dead letters in a row than its limit and one batch.

While the breaker is open, the same batch is retried with backoff. The breaker closes when a message
of the kind is applied, or when the count falls below the limit. A fixed release starts with a
closed breaker and gets the held messages from the broker. If the messages are garbage and should
all be dead-lettered, the operator starts the worker with `WORKER_BREAKER_FAILURES=0`, which
switches the breaker off.
"""

from collections.abc import Sequence

from worker.deliveries import Outcome, Reason, Verdict
from worker.errors import BreakerOpen

FAILURES_OF_A_PROVEN_KIND = 1_000

Key = tuple[str | None, str | None]
"""A message's event and its id."""

_APPLIED = (Verdict.APPLIED, Verdict.LATE, Verdict.ORPHAN)


class Breaker:
    """Counts the failures of each kind since the worker started."""

    def __init__(self, failures: int) -> None:
        """Open after this many failures of a kind in a row; 0 means never."""
        self._failures = failures
        self._proven: set[str | None] = set()
        self._in_a_row: dict[str | None, set[Key]] = {}

    def require_closed(self, outcomes: Sequence[Outcome]) -> None:
        """Count the failures of a batch that is about to be settled.

        Raises `BreakerOpen` if the batch must be held instead; the same batch may be retried.
        """
        if not self._failures:
            return
        self._proven |= {each.kind for each in outcomes if each.verdict in _APPLIED}
        good = {each.kind for each in outcomes if each.verdict is not Verdict.REJECTED}
        for kind in self._in_a_row.keys() & good:
            del self._in_a_row[kind]
        failed: dict[str | None, list[Outcome]] = {}
        for each in outcomes:
            if each.verdict is Verdict.REJECTED and each.kind not in good and _failed(each):
                failed.setdefault(each.kind, []).append(each)
        for kind, failures in failed.items():
            self._count(kind, failures)

    def _count(self, kind: str | None, failures: Sequence[Outcome]) -> None:
        in_a_row = self._in_a_row.get(kind, set()) | {(o.event_id, o.message_id) for o in failures}
        if len(in_a_row) >= self._limit(kind):
            raise _opened(len(in_a_row), failures[-1], is_proven=kind in self._proven)
        self._in_a_row[kind] = in_a_row

    def _limit(self, kind: str | None) -> int:
        if kind in self._proven:
            return max(self._failures, FAILURES_OF_A_PROVEN_KIND)
        return self._failures


def _failed(outcome: Outcome) -> bool:
    return outcome.rejected is not None and outcome.rejected.reason is Reason.HANDLER_FAILED


def _opened(number: int, last: Outcome, *, is_proven: bool) -> BreakerOpen:
    since = "" if is_proven else ", and none has been applied since the start"
    detail = last.rejected.detail if last.rejected is not None else ""
    return BreakerOpen(
        f"{number:,} messages of kind {last.kind!r} have failed in a row{since}. The last one was "
        f"{last.message_id!r} of event {last.event_id!r}: {detail}",
        "start a release whose handlers can apply them: the messages wait in the queue until then. "
        "If they must all be dead-lettered, start the worker with WORKER_BREAKER_FAILURES=0.",
    )
