import pytest

from worker.telemetry.health import (
    COMMIT_SECONDS,
    LOOP_SECONDS,
    STEP_SECONDS,
    Facts,
    State,
    live,
    ready,
)

NOW = 10_000.0


def facts(state: State = State.CONSUMING, **others: float | str | None) -> Facts:
    """Return the facts of a healthy worker, with changes."""
    known = Facts(state, loop_turned_at=NOW, step_began_at=NOW)
    for name, value in others.items():
        setattr(known, name, value)
    return known


class TestLive:
    """Whether a restart would not help."""

    @pytest.mark.parametrize("state", State)
    def test_is_a_worker_in_any_state(self, state: State) -> None:
        """A standby, or a worker whose database cannot commit, should not be restarted."""
        health = live(facts(state, problem="The disk is full."), NOW)

        assert health.is_well
        assert state.replace("_", " ") in health.reason

    def test_is_not_a_worker_whose_loop_is_blocked(self) -> None:
        """It becomes not live after a limit, and the reason gives the seconds."""
        known = facts(loop_turned_at=NOW - LOOP_SECONDS)

        assert live(known, NOW).is_well
        late = live(known, NOW + 1)
        assert not late.is_well
        assert "16 seconds" in late.reason

    def test_is_not_a_worker_whose_transaction_does_not_end(self) -> None:
        """It becomes not live after a limit, and the reason gives the seconds."""
        known = facts(projecting_since=0.0, progressed_at=NOW - COMMIT_SECONDS)

        assert live(known, NOW).is_well
        known.loop_turned_at = NOW + 1
        late = live(known, NOW + 1)
        assert not late.is_well
        assert "transaction" in late.reason
        assert "121 seconds" in late.reason

    def test_is_a_worker_whose_long_transaction_gets_on(self) -> None:
        """A fold may take as long as its stream requires."""
        known = facts(projecting_since=NOW - 10 * COMMIT_SECONDS, progressed_at=NOW - 1)

        assert live(known, NOW).is_well

    @pytest.mark.parametrize("state", [State.STARTING, State.CONNECTING, State.DRAINING])
    def test_is_not_a_worker_that_makes_no_step(self, state: State) -> None:
        """After a limit it is not live; the reason gives the step and its seconds."""
        known = facts(state, step_began_at=NOW - STEP_SECONDS)

        assert live(known, NOW).is_well
        known.loop_turned_at = NOW + 1
        late = live(known, NOW + 1)
        assert not late.is_well
        assert state in late.reason
        assert "121 seconds" in late.reason

    def test_is_a_worker_whose_session_was_lost_in_a_long_transaction(self) -> None:
        """The transaction has its own limit."""
        known = facts(State.CONNECTING, step_began_at=NOW - STEP_SECONDS - 1, progressed_at=NOW - 1)

        assert live(known, NOW).is_well

    def test_is_a_worker_that_starts(self) -> None:
        """Nothing has happened yet, and that is no fault."""
        known = Facts()

        assert live(known, known.loop_turned_at).is_well


class TestReady:
    """Whether messages are projected now."""

    @pytest.mark.parametrize("state", State)
    def test_is_only_a_worker_that_consumes(self, state: State) -> None:
        """Every other state is named."""
        health = ready(facts(state), NOW)

        assert health.is_well == (state is State.CONSUMING)
        assert state.replace("_", " ") in health.reason

    def test_is_not_a_worker_with_a_problem(self) -> None:
        """A consumer that cannot publish its dead letters says so."""
        health = ready(facts(problem="The queue has no dead-letter exchange."), NOW)

        assert not health.is_well
        assert "consuming" in health.reason
        assert "no dead-letter exchange" in health.reason

    def test_is_not_a_worker_that_is_not_live(self) -> None:
        """The reason is that for not being live."""
        known = facts(loop_turned_at=0.0)

        assert ready(known, NOW) == live(known, NOW)
        assert not ready(known, NOW).is_well
