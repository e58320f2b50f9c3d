"""What the worker says of itself: every change of state once, as a log line, a fact and a metric.

The service tells what happens; this decides how it is told, so that log lines, /readyz and /metrics
cannot disagree. A line comes after its fact: who has read it may ask.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from worker.deliveries import BatchReport, Delivery, Folding, Outcome
from worker.errors import BreakerOpen, BrokerRefused, MustHold, WorkerError
from worker.telemetry.health import Facts, State
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import Metrics
from worker.telemetry.summary import Summary, verdict_fields

# What lasts for as long as there is work; everything else is done in steps.
LASTING = (State.CONSUMING, State.REBUILDING)
LONG_FOLD_SECONDS = 1.0


class Report:
    """One worker's account, from its start to its end."""

    def __init__(self, facts: Facts, metrics: Metrics, summary_seconds: float) -> None:
        """Report into facts that others read; sum batches up for so many seconds."""
        self.facts = facts
        self._metrics = metrics
        self._log = get_logger()
        self._summary = Summary(
            summary_seconds, lambda fields: self._log.info("projected", **fields)
        )
        self._phase = (State.STARTING, "")
        self._held_because = self._blocked_because = self._topology_problem = ""
        self._broker_trouble: type[Exception] | None = None
        self._has_session = False
        self._is_told_unclaimed = False
        self._attempts = 0
        self._long_fold: str | None = None
        """The event whose fold has been said to take long."""
        self._is_quarantined = False
        self._is_draining = False

    def starting(self, **settings: str) -> None:
        """Say who begins, with which files and queues."""
        self._log.info("starting", pid=os.getpid(), **settings)

    def health_served(self, url: str) -> None:
        """Say where health and metrics are to be had."""
        self._log.info("health_served", url=url)

    def step(self) -> None:
        """Note that the supervisor goes on, where it does so in steps."""
        if self.facts.step_began_at is not None:
            self.facts.step_began_at = time.monotonic()

    def standing_by(self, reason: str) -> None:
        """Say that another worker writes the file, or is active on the queue."""
        self._broker_trouble = None
        self._enter(State.STANDING_BY, reason)
        self._log.info("standing_by", reason=reason)

    def taking_over(self) -> None:
        """Say that the other one has gone."""
        self._enter(State.STARTING)
        self._log.info("taking_over")

    def rebuilding(self, reason: str) -> None:
        """Say that the rows are folded anew before anything is consumed."""
        self._enter(State.REBUILDING, reason)
        self._log.info("rebuilding", reason=reason)

    def rebuilt(self, dropped_indexes: Sequence[str], **figures: float) -> None:
        """Say that they have been, and which indexes of the old tables are gone."""
        self._enter(State.STARTING)
        self._log.info("rebuilt", **figures)
        if dropped_indexes:
            self._log.warning("indexes_dropped", statements=list(dropped_indexes))

    def connecting(self) -> None:
        """Note that a session is being opened."""
        self._enter(State.CONNECTING, self.facts.problem or "")

    def session_opened(self, unclaimed: WorkerError | None) -> None:
        """Note that a session is open; say, once, why the queue could not be claimed."""
        self._has_session = True
        self._metrics.session_opened()
        if unclaimed is not None and not self._is_told_unclaimed:
            self._is_told_unclaimed = True
            self._log.warning("queue_not_claimed", reason=unclaimed.message, hint=unclaimed.hint)

    def connected(self, broker: str) -> None:
        """Say that the worker consumes."""
        self._broker_trouble = None
        self._enter(State.CONSUMING)
        self._log.info("connected", broker=broker)

    def losing(self, error: BaseException) -> None:
        """Note that the session is over, before anything of it has been closed."""
        if self._is_draining:
            return  # That is how a drain ends.
        if self._has_session:
            self._has_session = False
            self._metrics.session_lost()
        self._enter(
            State.CONNECTING, error.message if isinstance(error, WorkerError) else str(error)
        )

    def connection_lost(self, error: WorkerError, attempt: int) -> None:
        """Say why a session ended or could not be opened, once for each kind of trouble."""
        self.losing(error)
        oldest, self.facts.oldest_unsettled_at = self.facts.oldest_unsettled_at, None
        # What was so of this session is no more.
        self._blocked_because = self._topology_problem = ""
        self._is_quarantined = False
        # A broker that is away and one that says no are two states.
        if type(error) is not self._broker_trouble:
            refuses = isinstance(error, BrokerRefused)
            event = "connection_refused" if refuses else "connection_lost"
            # Of a long time, the broker's consumer timeout may be the reason.
            waited = (
                {} if oldest is None else {"unsettled_seconds": round(time.monotonic() - oldest, 1)}
            )
            self._log.warning(event, reason=error.message, hint=error.hint, **waited)
            self._broker_trouble = type(error)
        else:
            self._log.debug("connection_failed", attempt=attempt, reason=error.message)

    def topology(self, error: WorkerError | None) -> None:
        """Say that the broker is not as it must be while the worker consumes; None: that it is."""
        if self._phase[0] is not State.CONSUMING:
            return  # The session that was asked is over.
        before, self._topology_problem = self._topology_problem, error.message if error else ""
        self._tell()
        if error is not None and not before:
            self._log.error("topology_wrong", reason=error.message, hint=error.hint)
        elif error is None and before:
            self._log.info("topology_right")

    def sizes(self, queue: int | None, dead_letters: int | None, wal_bytes: int) -> None:
        """Note how many messages wait, if that is known, and how large the file's WAL is."""
        self._metrics.depths(queue, dead_letters)
        self._metrics.wal_bytes(wal_bytes)

    def quarantine(self, suspect: Delivery | None) -> None:
        """Name a message that consumers may have ended of, and which is tried alone; None: past."""
        if suspect is not None:
            self._log.warning(
                "quarantined",
                losses=suspect.losses,
                message_id=suspect.read_properties().kept.get("message_id"),
                routing_key=suspect.routing_key,
                body_bytes=len(suspect.body),
                hint="if this is the last line of a worker, this message is the cause; the broker "
                "dead-letters it at its delivery limit.",
            )
        elif self._is_quarantined:
            self._log.info("quarantine_ended")
        self._is_quarantined = suspect is not None

    def holding(self, error: MustHold, messages: int) -> None:
        """Say that a batch is held, once for each kind of reason."""
        self._attempts += 1
        is_breaker_open = isinstance(error, BreakerOpen)
        is_told = self._attempts > 1 and is_breaker_open is self.facts.is_breaker_open
        self.facts.is_breaker_open = is_breaker_open
        self._held_because = error.message
        self._tell()
        if is_told:
            self._log.debug("still_holding", attempt=self._attempts, reason=error.message)
        else:
            event = "breaker_opened" if is_breaker_open else "holding"
            self._log.error(event, messages=messages, reason=error.message, hint=error.hint)

    def commits(self) -> None:
        """Note that a batch is held no longer; say so if it was before."""
        if self._attempts:
            attempts, self._attempts = self._attempts, 0
            event = "breaker_closed" if self.facts.is_breaker_open else "resumed"
            self.facts.is_breaker_open = False
            self._held_because = ""
            self._tell()
            self._log.info(event, attempts=attempts)

    def blocked(self, error: WorkerError | None) -> None:
        """Say why dead letters cannot be published; None: that they can again."""
        self._blocked_because = error.message if error else ""
        self._tell()
        if error is None:
            self.facts.oldest_unsettled_at = None
            self._log.info("unblocked")
        else:
            self._log.warning("blocked", reason=error.message, hint=error.hint)

    def taken(self, first: Delivery) -> None:
        """Note that a batch has been taken, which begins with this delivery."""
        if self.facts.oldest_unsettled_at is None:
            self.facts.oldest_unsettled_at = time.monotonic()
        self.quarantine(first if first.is_suspect else None)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Note how long a transaction has been running, and that it gets on (`folding`)."""
        self.facts.projecting_since = self.facts.progressed_at = time.monotonic()
        try:
            yield
        finally:
            # Before the transaction ends: who looks between the two must not see an old step.
            self.step()
            self.facts.projecting_since = self.facts.progressed_at = None

    def folding(self, stream: Folding) -> None:
        """Note that the transaction gets on, and name a stream whose fold takes long.

        Once when that is known, and once when the fold has ended.
        """
        if self.facts.progressed_at is not None:
            self.facts.progressed_at = time.monotonic()
        if stream.seconds <= LONG_FOLD_SECONDS or (
            stream.event_id == self._long_fold and not stream.is_done
        ):
            return
        self._log.warning(
            "long_fold_ended" if stream.is_done else "long_fold",
            event_id=stream.event_id,
            messages=stream.messages,
            seconds=round(stream.seconds, 1),
        )
        self._long_fold = None if stream.is_done else stream.event_id
        if stream.is_done:
            self._metrics.long_fold()

    def settled(self, outcomes: Sequence[Outcome], commit_seconds: float = 0.0) -> None:
        """Note what a batch did that has been committed and settled."""
        if not self._blocked_because:
            self.facts.oldest_unsettled_at = None
        if not outcomes:
            return  # All of it waits for the broker to take its dead letters.
        batch = BatchReport.of(outcomes, commit_seconds)
        if len(batch.rejections) < len(outcomes):
            self.facts.last_commit_at = time.time()
        self._metrics.batch_settled(batch)
        self._summary.add(batch)
        self._log.debug(
            "batch_committed",
            messages=sum(batch.verdicts.values()),
            redelivered=batch.redelivered,
            commit_seconds=round(batch.commit_seconds, 4),
            **verdict_fields(batch.verdicts),
        )
        for outcome in batch.rejections:
            self._dead_lettered(outcome)

    def draining(self, signal_name: str) -> None:
        """Say that the worker takes no more and ends soon."""
        self._is_draining = True
        self.facts.step_began_at = time.monotonic()
        self._tell()
        self._log.info("draining", signal=signal_name)

    def ended_at_once(self, signal_name: str) -> None:
        """Say that a second signal ends the process now."""
        self._log.warning("ended_at_once", signal=signal_name)

    def drain_timed_out(self, seconds: float) -> None:
        """Say that something did not end in time."""
        self._log.warning("drain_timed_out", seconds=seconds)

    def stopped(self) -> None:
        """Say that all is closed."""
        self._summary.flush()
        self._log.info("stopped")

    def _dead_lettered(self, outcome: Outcome) -> None:
        if outcome.rejected is None:
            return
        self._log.warning(
            "dead_lettered",
            reason=outcome.rejected.reason.value,
            detail=outcome.rejected.detail,
            message_id=outcome.message_id,
            kind=outcome.kind,
            event_id=outcome.event_id,
            routing_key=outcome.delivery.routing_key,
            body_bytes=len(outcome.delivery.body),
        )

    def _enter(self, state: State, problem: str = "") -> None:
        self._phase = (state, problem)
        lasts = state in LASTING and not self._is_draining
        self.facts.step_began_at = None if lasts else time.monotonic()
        self._tell()

    def _tell(self) -> None:
        """Bring the facts up to all that is so: what weighs most comes first."""
        state, problem = self._phase
        is_consuming = state is State.CONSUMING
        if self._held_because:
            state, problem = State.HOLDING, self._held_because
        elif is_consuming and self._blocked_because:
            state, problem = State.BLOCKED, self._blocked_because
        elif is_consuming:
            problem = self._topology_problem
        self.facts.state = State.DRAINING if self._is_draining else state
        self.facts.problem = problem or None
