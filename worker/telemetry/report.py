"""What the worker reports: each change of state once, as a log line, a fact and a metric.

The service says what happens; this module decides how to report it, so that log lines, /readyz and
/metrics cannot disagree. Facts change before the line is logged, so they are already true for
anyone who has read the line.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from worker.deliveries import BatchReport, Delivery, Folding, Outcome
from worker.errors import BreakerOpen, BrokerRefused, MustHold, WorkerError
from worker.store.consumption import Consumption
from worker.telemetry.health import Facts, Partitions, State
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import Metrics
from worker.telemetry.summary import Summary, verdict_fields

# These states last as long as there is work; all others consist of steps.
LASTING = (State.CONSUMING, State.REBUILDING)
LONG_FOLD_SECONDS = 1.0


class Report:
    """Reports on one worker, from its start to its end."""

    def __init__(self, facts: Facts, metrics: Metrics, summary_seconds: float) -> None:
        """Report into facts that others read; summarize batches after so many seconds."""
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
        self._is_told_of_priorities = False
        self._attempts = 0
        self._long_fold: str | None = None
        """The event whose fold has been reported as long."""
        self._is_quarantined = False
        self._is_draining = False

    def starting(self, **settings: str) -> None:
        """Report that the process starts, with which files and queues."""
        self._log.info("starting", pid=os.getpid(), **settings)

    def health_served(self, url: str) -> None:
        """Report where health and metrics are served."""
        self._log.info("health_served", url=url)

    def step(self) -> None:
        """Record that the supervisor has begun another step, in a state that consists of steps."""
        if self.facts.step_began_at is not None:
            self.facts.step_began_at = time.monotonic()

    def standing_by(self, reason: str) -> None:
        """Report that another worker writes the file, or is active on the queue."""
        self._broker_trouble = None
        self._enter(State.STANDING_BY, reason)
        self._log.info("standing_by", reason=reason)

    def taking_over(self) -> None:
        """Report that the other worker has gone."""
        self._enter(State.STARTING)
        self._log.info("taking_over")

    def rebuilding(self, reason: str) -> None:
        """Report that the rows are being folded again before anything is consumed."""
        self._enter(State.REBUILDING, reason)
        self._log.info("rebuilding", reason=reason)

    def rebuilt(self, dropped_indexes: Sequence[str], **figures: float) -> None:
        """Report that the rows have been folded again, and which indexes were dropped."""
        self._enter(State.STARTING)
        self._log.info("rebuilt", **figures)
        if dropped_indexes:
            self._log.warning("indexes_dropped", statements=list(dropped_indexes))

    def connecting(self) -> None:
        """Record that a session is being opened."""
        self._enter(State.CONNECTING, self.facts.problem or "")

    def session_opened(self, unclaimed: WorkerError | None) -> None:
        """Record that a session is open; report once why the queue could not be claimed."""
        self._has_session = True
        self._metrics.session_opened()
        if unclaimed is not None and not self._is_told_unclaimed:
            self._is_told_unclaimed = True
            self._log.warning("queue_not_claimed", reason=unclaimed.message, hint=unclaimed.hint)

    def connected(self, broker: str) -> None:
        """Report that the worker consumes."""
        self._broker_trouble = None
        self._enter(State.CONSUMING)
        self._log.info("connected", broker=broker)

    def losing(self, error: BaseException) -> None:
        """Record that the session has ended, before its parts are closed."""
        if self._is_draining:
            return  # That is how a drain ends.
        if self._has_session:
            self._has_session = False
            self._metrics.session_lost()
        self._enter(
            State.CONNECTING, error.message if isinstance(error, WorkerError) else str(error)
        )

    def connection_lost(self, error: WorkerError, attempt: int) -> None:
        """Report why a session ended or could not be opened, once for each kind of trouble."""
        self.losing(error)
        oldest, self.facts.oldest_unsettled_at = self.facts.oldest_unsettled_at, None
        # These belonged to the session.
        self._blocked_because = self._topology_problem = ""
        self._is_quarantined = False
        # An absent broker and one that refuses are two kinds of trouble.
        if type(error) is not self._broker_trouble:
            refuses = isinstance(error, BrokerRefused)
            event = "connection_refused" if refuses else "connection_lost"
            # If this is long, the broker's consumer timeout may be the reason.
            waited = (
                {} if oldest is None else {"unsettled_seconds": round(time.monotonic() - oldest, 1)}
            )
            self._log.warning(event, reason=error.message, hint=error.hint, **waited)
            self._broker_trouble = type(error)
        else:
            self._log.debug("connection_failed", attempt=attempt, reason=error.message)

    def topology(self, error: WorkerError | None) -> None:
        """Report that the topology is wrong while the worker consumes; None: that it is right."""
        if self._phase[0] is not State.CONSUMING:
            return  # The session in which it was verified has ended.
        before, self._topology_problem = self._topology_problem, error.message if error else ""
        self._tell()
        if error is not None and not before:
            self._log.error("topology_wrong", reason=error.message, hint=error.hint)
        elif error is None and before:
            self._log.info("topology_right")

    def sizes(self, queue: int | None, dead_letters: int | None, wal_bytes: int) -> None:
        """Record how many messages wait, if that is known, and the size of the WAL."""
        self._metrics.depths(queue, dead_letters)
        self._metrics.wal_bytes(wal_bytes)

    def partitions(self, waiting: Sequence[int | None], consumption: Sequence[Consumption]) -> None:
        """Record how many messages wait in each partition, and which ones this worker consumes."""
        if waiting:
            self.facts.partitions = Partitions(len(waiting), len(consumption))
            self._metrics.partitions(waiting, consumption)

    def priorities_ignored(self, broker_version: str) -> None:
        """Report once that one worker gets all partitions, whoever else waits for some."""
        if not self._is_told_of_priorities:
            self._is_told_of_priorities = True
            self._log.warning(
                "priorities_ignored",
                rabbitmq=broker_version,
                reason="before RabbitMQ 4.0, the first worker to start consumes everything, and "
                "the others stand by until it ends",
                hint="number the workers from 0 with WORKER_ORDINAL.",
            )

    def resized(self, partitions: int) -> None:
        """Report that the messages are spread over another number of partitions."""
        self._log.info("resized", partitions=partitions)

    def quarantine(self, suspect: Delivery | None) -> None:
        """Report a suspect that is about to be tried alone; None: no suspect is left."""
        if suspect is not None:
            self._log.warning(
                "quarantined",
                losses=suspect.losses,
                message_id=suspect.read_properties().kept.get("message_id"),
                routing_key=suspect.routing_key,
                body_bytes=len(suspect.body),
                hint="if this is the last line before the worker died, this message is the cause; "
                "the broker dead-letters it at its delivery limit.",
            )
        elif self._is_quarantined:
            self._log.info("quarantine_ended")
        self._is_quarantined = suspect is not None

    def holding(self, error: MustHold, messages: int) -> None:
        """Report that a batch is held, once for each kind of reason."""
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
        """Record that the database commits; report it if a batch was held before."""
        if self._attempts:
            attempts, self._attempts = self._attempts, 0
            event = "breaker_closed" if self.facts.is_breaker_open else "resumed"
            self.facts.is_breaker_open = False
            self._held_because = ""
            self._tell()
            self._log.info(event, attempts=attempts)

    def blocked(self, error: WorkerError | None) -> None:
        """Report why dead letters cannot be published; None: that they can be again."""
        self._blocked_because = error.message if error else ""
        self._tell()
        if error is None:
            self.facts.oldest_unsettled_at = None
            self._log.info("unblocked")
        else:
            self._log.warning("blocked", reason=error.message, hint=error.hint)

    def taken(self, first: Delivery) -> None:
        """Record that a batch has been taken that begins with this delivery."""
        if self.facts.oldest_unsettled_at is None:
            self.facts.oldest_unsettled_at = time.monotonic()
        self.quarantine(first if first.is_suspect else None)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Record when a transaction began, and that it makes progress (`folding`)."""
        self.facts.projecting_since = self.facts.progressed_at = time.monotonic()
        try:
            yield
        finally:
            # First, so that a reader between the two statements does not see an old step.
            self.step()
            self.facts.projecting_since = self.facts.progressed_at = None

    def folding(self, stream: Folding) -> None:
        """Record that the transaction makes progress, and report a stream whose fold takes long.

        It is reported once when it is found to be long, and once when it has ended.
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
        """Record the outcomes of a batch that has been committed and settled."""
        if not self._blocked_because:
            self.facts.oldest_unsettled_at = None
        if not outcomes:
            return  # The whole batch waits for the confirms of its dead letters.
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
        """Report that the worker takes no more messages and ends soon."""
        self._is_draining = True
        self.facts.step_began_at = time.monotonic()
        self._tell()
        self._log.info("draining", signal=signal_name)

    def ended_at_once(self, signal_name: str) -> None:
        """Report that a second signal ends the process now."""
        self._log.warning("ended_at_once", signal=signal_name)

    def drain_timed_out(self, seconds: float) -> None:
        """Report that something did not end in time."""
        self._log.warning("drain_timed_out", seconds=seconds)

    def stopped(self) -> None:
        """Report that everything is closed."""
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
        """Update the state and the problem in the facts; the most severe problem wins."""
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
