from worker.deliveries import Delivery, Outcome, Verdict
from worker.errors import BrokerRefused, SessionLost, StoreUnavailable
from worker.telemetry.health import Facts, State
from worker.telemetry.metrics import Metrics
from worker.telemetry.report import Report

HELD = StoreUnavailable("The disk is full.", "make room.")
LOST = SessionLost("The session ended.", "wait.")
WRONG = BrokerRefused("There is no exchange.", "make it.")


def consuming() -> tuple[Report, Facts]:
    facts = Facts()
    report = Report(facts, Metrics(facts, sqlite_version="3"), 3_600)
    report.connected("amqp://localhost")
    return report, facts


def so(facts: Facts) -> tuple[State, str | None]:
    return (facts.state, facts.problem)


class TestTroubles:
    """Several at once: each is over when it is over, and the others are still told."""

    async def test_a_hold_hides_no_block(self) -> None:
        """The database commits again, and dead letters are still blocked."""
        report, facts = consuming()
        report.blocked("An alarm.")
        report.holding(HELD, 1)
        assert so(facts) == (State.HOLDING, HELD.message)

        report.commits()

        assert so(facts) == (State.BLOCKED, "An alarm.")
        report.blocked(None)
        assert so(facts) == (State.CONSUMING, None)

    async def test_a_block_hides_no_hold(self) -> None:
        """Dead letters go on, and the database still does not."""
        report, facts = consuming()
        report.holding(HELD, 1)
        report.blocked("An alarm.")

        report.blocked(None)

        assert so(facts) == (State.HOLDING, HELD.message)

    async def test_a_topology_that_is_wrong_outlasts_both(self) -> None:
        """It is looked at again, and only that look ends it."""
        report, facts = consuming()
        report.topology(WRONG)
        report.holding(HELD, 1)
        report.commits()

        assert so(facts) == (State.CONSUMING, WRONG.message)
        report.topology(None)
        assert so(facts) == (State.CONSUMING, None)

    async def test_of_a_session_end_with_it(self) -> None:
        """The next one starts without them."""
        report, facts = consuming()
        report.blocked("An alarm.")
        report.topology(WRONG)
        report.connection_lost(LOST, 1)
        assert so(facts) == (State.CONNECTING, LOST.message)

        report.connected("amqp://localhost")

        assert so(facts) == (State.CONSUMING, None)

    async def test_are_nothing_to_a_worker_that_drains(self) -> None:
        """It ends, whatever else is so."""
        report, facts = consuming()
        report.draining("SIGTERM")
        report.holding(HELD, 1)

        assert facts.state is State.DRAINING


class TestTheOldestUnsettled:
    async def test_is_as_old_as_what_is_blocked(self) -> None:
        """Batches that are settled meanwhile do not make it younger."""
        report, facts = consuming()
        delivery = Delivery(b"")
        report.taken(delivery)
        began = facts.oldest_unsettled_at
        report.blocked("An alarm.")

        report.settled([])
        report.taken(delivery)
        report.settled([Outcome(delivery, Verdict.APPLIED)], 0.1)

        assert facts.oldest_unsettled_at == began is not None
        report.blocked(None)
        assert facts.oldest_unsettled_at is None
