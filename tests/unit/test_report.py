from collections.abc import Callable

import pytest

from worker.deliveries import Delivery, Folding, Outcome, Verdict
from worker.errors import BreakerOpen, BrokerRefused, SessionLost, StoreUnavailable
from worker.telemetry.health import Facts, State
from worker.telemetry.metrics import Metrics
from worker.telemetry.report import Report

HELD = StoreUnavailable("The disk is full.", "make room.")
OPEN = BreakerOpen("All fail.", "deploy.")
LOST = SessionLost("The session ended.", "wait.")
ALARM = BrokerRefused("An alarm.", "end it.")
WRONG = BrokerRefused("There is no exchange.", "make it.")


def consuming() -> tuple[Report, Facts]:
    facts = Facts()
    report = Report(facts, Metrics(facts, sqlite_version="3"), 3_600)
    report.session_opened(None)
    report.connected("amqp://localhost")
    return report, facts


def end_transaction(report: Report) -> None:
    with report.transaction():
        pass


def so(facts: Facts) -> tuple[State, str | None]:
    return (facts.state, facts.problem)


class TestTroubles:
    """Of several problems, each ends by itself, and the others are still reported."""

    async def test_a_hold_hides_no_block(self) -> None:
        """The database commits again, and dead letters are still blocked."""
        report, facts = consuming()
        report.blocked(ALARM)
        report.holding(HELD, 1)
        assert so(facts) == (State.HOLDING, HELD.message)

        report.commits()

        assert so(facts) == (State.BLOCKED, ALARM.message)
        report.blocked(None)
        assert so(facts) == (State.CONSUMING, None)

    async def test_a_block_hides_no_hold(self) -> None:
        """Dead letters are published again, and the database still cannot commit."""
        report, facts = consuming()
        report.holding(HELD, 1)
        report.blocked(ALARM)

        report.blocked(None)

        assert so(facts) == (State.HOLDING, HELD.message)

    async def test_a_topology_that_is_wrong_outlasts_both(self) -> None:
        """Only the next check of the topology ends it."""
        report, facts = consuming()
        report.topology(WRONG)
        report.holding(HELD, 1)
        report.commits()

        assert so(facts) == (State.CONSUMING, WRONG.message)
        report.topology(None)
        assert so(facts) == (State.CONSUMING, None)

    async def test_of_a_session_end_with_it(self) -> None:
        """The next session starts without them."""
        report, facts = consuming()
        report.blocked(ALARM)
        report.topology(WRONG)
        report.connection_lost(LOST, 1)
        assert so(facts) == (State.CONNECTING, LOST.message)

        report.connected("amqp://localhost")

        assert so(facts) == (State.CONSUMING, None)

    async def test_an_open_breaker_is_a_hold_with_a_metric(self) -> None:
        """The worker is not ready, and gives the reason, until the batch is settled."""
        report, facts = consuming()
        report.holding(HELD, 1)
        assert not facts.is_breaker_open
        report.holding(OPEN, 1)
        assert (*so(facts), facts.is_breaker_open) == (State.HOLDING, OPEN.message, True)

        report.commits()

        assert (*so(facts), facts.is_breaker_open) == (State.CONSUMING, None, False)

    async def test_are_nothing_to_a_worker_that_drains(self) -> None:
        """It ends, whatever problems there are."""
        report, facts = consuming()
        report.draining("SIGTERM")
        report.holding(HELD, 1)

        assert facts.state is State.DRAINING


class TestAStep:
    """Between two sessions the worker takes steps, and each has an age."""

    async def test_lasts_as_long_as_a_session(self) -> None:
        """A session may be idle for days; nothing that happens in it begins a step."""
        report, facts = consuming()

        report.step()
        with report.transaction():
            pass

        assert facts.step_began_at is None

    async def test_begins_with_the_loss(self) -> None:
        """It begins before anything is closed, and the worker is not ready from then on."""
        report, facts = consuming()

        report.losing(LOST)

        assert so(facts) == (State.CONNECTING, LOST.message)
        assert facts.step_began_at is not None

    @pytest.mark.parametrize("go_on", [Report.step, Report.connecting, end_transaction])
    async def test_is_followed_by_another(self, go_on: Callable[[Report], None]) -> None:
        """A broker may be absent for hours: each attempt is a step."""
        report, facts = consuming()
        report.losing(LOST)
        facts.step_began_at = 0.0

        go_on(report)

        assert facts.step_began_at > 0.0

    async def test_ends_with_the_next_session(self) -> None:
        """It also ends with a rebuild, whose duration depends on the log."""
        report, facts = consuming()
        report.losing(LOST)
        report.connected("amqp://localhost")
        assert facts.step_began_at is None

        report.losing(LOST)
        report.rebuilding("Another version.")
        assert facts.step_began_at is None

    async def test_is_what_a_drain_is(self) -> None:
        """A drain is one step, whatever came before and however the session is closed."""
        report, facts = consuming()
        report.draining("SIGTERM")
        facts.step_began_at = began_at = 1.0

        report.losing(LOST)

        assert facts.step_began_at == began_at
        report.connected("amqp://localhost")
        assert facts.step_began_at is not None


class TestATransaction:
    async def test_is_as_old_as_its_last_progress(self) -> None:
        """A transaction that makes progress is not stuck; outside one there is no age."""
        report, facts = consuming()
        with report.transaction():
            began_at = facts.projecting_since
            facts.progressed_at = 0.0
            report.folding(Folding("e", 450, 0.1))
            assert facts.projecting_since == began_at
            assert facts.progressed_at > 0.0

        report.folding(Folding("e", 450, 0.1))

        assert facts.projecting_since is facts.progressed_at is None


class TestALoss:
    async def test_is_counted_once(self) -> None:
        """It is counted when it is noticed, and not again when everything is closed."""
        facts = Facts()
        metrics = Metrics(facts, sqlite_version="3")
        report = Report(facts, metrics, 3_600)
        report.session_opened(None)
        report.connected("amqp://localhost")

        report.losing(LOST)
        report.connection_lost(LOST, 1)
        report.connection_lost(LOST, 2)

        assert b"projection_sessions_lost_total 1.0\n" in metrics.render()[0]


class TestASessionThatWaitsForItsTurn:
    async def test_is_counted_and_not_ready(self) -> None:
        """This holds from its opening to its loss, although nothing was consumed in it."""
        facts = Facts()
        metrics = Metrics(facts, sqlite_version="3")
        report = Report(facts, metrics, 3_600)
        report.session_opened(None)
        report.standing_by("Another consumer is active.")
        assert so(facts) == (State.STANDING_BY, "Another consumer is active.")

        report.connection_lost(LOST, 1)
        report.connection_lost(LOST, 2)

        text = metrics.render()[0].decode()
        assert "projection_sessions_opened_total 1.0" in text
        assert "projection_sessions_lost_total 1.0" in text
        assert so(facts) == (State.CONNECTING, LOST.message)


class TestTheOldestUnsettled:
    async def test_is_as_old_as_what_is_blocked(self) -> None:
        """Batches that are settled meanwhile do not reset the age."""
        report, facts = consuming()
        delivery = Delivery(b"")
        report.taken(delivery)
        began = facts.oldest_unsettled_at
        report.blocked(ALARM)

        report.settled([])
        report.taken(delivery)
        report.settled([Outcome(delivery, Verdict.APPLIED)], 0.1)

        assert facts.oldest_unsettled_at == began is not None
        report.blocked(None)
        assert facts.oldest_unsettled_at is None


class TestALongFold:
    """The operator learns during the fold which event keeps the others waiting."""

    async def test_is_named_once_when_it_takes_long_and_when_it_ends(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One line comes after a second, one with the figures at the end; the metric counts one."""
        report, _ = consuming()
        for seconds in (0.4, 1.1, 1.8, 2.5):
            report.folding(Folding("e-1", round(1_000 * seconds), seconds))
        report.folding(Folding("e-1", 2_500, 2.5, is_done=True))

        said = [line for line in capsys.readouterr().out.splitlines() if "long_fold" in line]
        assert len(said) == 2
        assert all(word in said[0] for word in ("e-1", "1100", "1.1"))
        assert all(word in said[1] for word in ("long_fold_ended", "e-1", "2500", "2.5"))
        assert b"projection_long_folds_total 1.0" in report._metrics.render()[0]

    async def test_of_less_than_a_second_is_not_worth_a_line(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Late messages are common."""
        report, _ = consuming()
        report.folding(Folding("e-1", 10, 0.9))
        report.folding(Folding("e-1", 20, 0.99, is_done=True))

        assert "long_fold" not in capsys.readouterr().out
        assert b"projection_long_folds_total 0.0" in report._metrics.render()[0]
