from collections.abc import Iterable

import pytest

from worker.breaker import FAILURES_OF_A_PROVEN_KIND, Breaker
from worker.deliveries import Delivery, Outcome, Reason, Rejected, Verdict
from worker.errors import BreakerOpen

LIMIT = 5


def failed(
    kind: str, numbers: Iterable[int], reason: Reason = Reason.HANDLER_FAILED
) -> list[Outcome]:
    why = Rejected(reason, "KeyError: 'why'")
    return [
        Outcome(Delivery(b""), Verdict.REJECTED, why, kind, f"e-{number}", f"m-{number}")
        for number in numbers
    ]


def handled(kind: str, verdict: Verdict = Verdict.APPLIED) -> list[Outcome]:
    return [Outcome(Delivery(b""), verdict, None, kind, "e", "m")]


class TestABreaker:
    def test_opens_when_a_kind_fails_in_one_batch(self) -> None:
        """The error names the kind, the number and the last failure; the hint says what to do."""
        with pytest.raises(BreakerOpen) as opened:
            Breaker(LIMIT).require_closed(failed("started", range(LIMIT)))

        assert opened.value.message == (
            "5 messages of kind 'started' have failed in a row, and none has been applied since "
            "the start. The last one was 'm-4' of event 'e-4': KeyError: 'why'"
        )
        assert "WORKER_BREAKER_FAILURES=0" in opened.value.hint

    def test_counts_across_batches(self) -> None:
        """However few messages arrive at once, no more than the limit are dead-lettered."""
        breaker = Breaker(LIMIT)
        for number in range(LIMIT - 1):
            breaker.require_closed(failed("started", [number]))

        with pytest.raises(BreakerOpen):
            breaker.require_closed(failed("started", [LIMIT - 1]))

    def test_stays_open_for_the_same_batch(self) -> None:
        """Trying a batch again counts nothing twice and does not close the breaker."""
        breaker = Breaker(LIMIT)
        for _ in range(3):
            with pytest.raises(BreakerOpen, match="5 messages"):
                breaker.require_closed(failed("started", range(LIMIT)))

    def test_closes_when_the_batch_is_applied(self) -> None:
        """The handler works again: the count starts again from zero."""
        breaker = Breaker(LIMIT)
        with pytest.raises(BreakerOpen):
            breaker.require_closed(failed("started", range(LIMIT)))

        breaker.require_closed(handled("started"))

        breaker.require_closed(failed("started", range(LIMIT)))

    @pytest.mark.parametrize("verdict", [Verdict.APPLIED, Verdict.LATE, Verdict.ORPHAN])
    def test_lets_a_burst_of_a_proven_kind_pass(self, verdict: Verdict) -> None:
        """A publisher's mistake is not a bad deployment, but it is limited as well."""
        breaker = Breaker(LIMIT)
        breaker.require_closed(handled("started", verdict))

        breaker.require_closed(failed("started", range(FAILURES_OF_A_PROVEN_KIND - 1)))
        with pytest.raises(BreakerOpen, match="1,000 messages of kind 'started'"):
            breaker.require_closed(failed("started", [FAILURES_OF_A_PROVEN_KIND]))

    def test_looks_at_a_batch_as_a_whole(self) -> None:
        """One applied message ends the row of failures, wherever it stands in the batch."""
        breaker = Breaker(LIMIT)
        for _ in range(3):
            batch = [*handled("started"), *failed("started", range(FAILURES_OF_A_PROVEN_KIND))]
            breaker.require_closed(batch)

    def test_takes_a_message_that_comes_again_for_one(self) -> None:
        """Its session may be lost any number of times before its dead letter is confirmed."""
        breaker = Breaker(LIMIT)
        for _ in range(3 * LIMIT):
            breaker.require_closed(failed("started", [1]))

    def test_counts_each_kind_by_itself(self) -> None:
        """A few bad messages of many kinds do not open it."""
        breaker = Breaker(LIMIT)
        for kind in ("planned", "started", "completed"):
            breaker.require_closed(failed(kind, range(LIMIT - 1)))

        with pytest.raises(BreakerOpen, match="'planned'"):
            breaker.require_closed(failed("planned", [LIMIT]))

    def test_takes_a_duplicate_for_a_message_that_was_applied_before(self) -> None:
        """It ends the row, as after a restart; but another release may have applied it."""
        breaker = Breaker(LIMIT)
        breaker.require_closed(failed("started", range(LIMIT - 1)))
        breaker.require_closed(handled("started", Verdict.DUPLICATE))

        breaker.require_closed(failed("started", range(LIMIT - 1)))
        with pytest.raises(BreakerOpen):
            breaker.require_closed(failed("started", [LIMIT]))

    def test_counts_failures_of_handlers_only(self) -> None:
        """Invalid messages are the publisher's fault, however many there are."""
        Breaker(LIMIT).require_closed(failed("started", range(99), Reason.ID_CONFLICT))

    def test_never_opens_if_it_is_switched_off(self) -> None:
        """An operator can let any number of failing messages be dead-lettered."""
        Breaker(0).require_closed(failed("started", range(9_999)))
