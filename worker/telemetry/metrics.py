"""Every metric: its name, its unit, and what a rise of it means.

Labels have few values, and all of them are there from the start with 0: an alert on a rise sees
the first dead letter, too. A number that nobody knows yet is NaN, which no comparison fires on.
"""

import time
from functools import partial
from importlib.metadata import version
from math import nan

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from worker.deliveries import BatchReport, Reason, Verdict
from worker.telemetry.health import Facts, State

# A batch has 2,000 messages at most (`worker/settings.py`).
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
# From one message on a fast disk to the hold of a database that is locked for a minute.
COMMIT_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """What the worker counts and measures; told by the service, read by any thread."""

    def __init__(self, facts: Facts, *, sqlite_version: str) -> None:
        """Count from 0; what the facts say is looked up whenever somebody reads."""
        # The time at which each counter was made would double their number. The switch is the
        # whole process's, and no one else in it counts.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._count_messages()
        self._count_sessions()
        self._measure_depths()
        self._look_up(facts)
        versions = Info("projection_worker", "Versions in use.", registry=self._registry)
        versions.info({"version": version("projection-worker"), "sqlite": sqlite_version})
        ProcessCollector(registry=self._registry)

    def batch_settled(self, report: BatchReport) -> None:
        """Count a batch that is committed and settled."""
        for verdict, number in report.verdicts.items():
            self._messages[verdict].inc(number)
        for outcome in report.rejections:
            if outcome.rejected is not None:
                self._dead_letters[outcome.rejected.reason].inc()
        self._redelivered.inc(report.redelivered)
        self._batch_size.observe(sum(report.verdicts.values()))
        self._commit_seconds.observe(report.commit_seconds)

    def long_fold(self) -> None:
        """Count the fold of a stream that took longer than a second."""
        self._long_folds.inc()

    def session_opened(self) -> None:
        """Count a session that has begun."""
        self._sessions_opened.inc()

    def session_lost(self) -> None:
        """Count a session that has ended unasked."""
        self._sessions_lost.inc()

    def depths(self, ready: int | None, dead_letters: int | None) -> None:
        """Note how many messages wait in the queue and in its dead-letter queue; None: unknown."""
        self._queue.set(nan if ready is None else ready)
        self._dead_letter_queue.set(nan if dead_letters is None else dead_letters)

    def wal_bytes(self, size: int) -> None:
        """Note the size of the database's write-ahead log."""
        self._wal.set(size)

    def render(self) -> tuple[bytes, str]:
        """Give all of it as Prometheus reads it: the text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _count_messages(self) -> None:
        messages = Counter(
            "projection_messages",
            "Messages settled, by outcome. A standstill while messages wait: nothing is projected."
            " Rising late or orphan: publishers send out of order, or plans are lost.",
            ["outcome"],
            registry=self._registry,
        )
        self._messages = {verdict: messages.labels(verdict.value) for verdict in Verdict}
        dead_letters = Counter(
            "projection_dead_letters",
            "Messages dead-lettered, by reason. A rise: a publisher sends what cannot be applied,"
            " or a handler fails; see 'projection-worker dead-letters list'.",
            ["reason"],
            registry=self._registry,
        )
        self._dead_letters = {reason: dead_letters.labels(reason.value) for reason in Reason}
        self._redelivered = Counter(
            "projection_redelivered_messages",
            "Messages that the broker marked as delivered before. A rise: sessions are lost, or"
            " workers die, before they ack.",
            registry=self._registry,
        )
        self._long_folds = Counter(
            "projection_long_folds",
            "Folds of one stream that took longer than a second, because late messages came to it."
            " A rise: an event has very many messages, and a publisher's clock may be wrong; the"
            " log line long_fold names the event.",
            registry=self._registry,
        )
        self._batch_size = Histogram(
            "projection_batch_messages",
            "Messages in one transaction. A rise to the batch size: messages arrive as fast as"
            " they are projected, or faster.",
            buckets=BATCH_BUCKETS,
            registry=self._registry,
        )
        self._commit_seconds = Histogram(
            "projection_commit_seconds",
            "Seconds from the taking of a batch to the end of its COMMIT, holding"
            " included. A rise: the disk or a handler is slow, or the file is locked.",
            buckets=COMMIT_BUCKETS,
            registry=self._registry,
        )

    def _count_sessions(self) -> None:
        self._sessions_opened = Counter(
            "projection_sessions_opened",
            "Sessions opened with the broker. A rise after the first: reconnects.",
            registry=self._registry,
        )
        self._sessions_lost = Counter(
            "projection_sessions_lost",
            "Sessions with the broker that ended unasked. A rise: the broker or the network fails.",
            registry=self._registry,
        )

    def _measure_depths(self) -> None:
        self._queue = self._gauge(
            "projection_queue_messages",
            "Messages that wait in the queue, undelivered. A rise: more arrives than is projected.",
        )
        self._dead_letter_queue = self._gauge(
            "projection_dead_letter_queue_messages",
            "Messages that wait in the dead-letter queue. A rise: somebody must look at them.",
        )
        self._wal = self._gauge(
            "projection_wal_bytes",
            "Size of the database's write-ahead log. A rise without end: a reader keeps its"
            " transaction open, so that no checkpoint completes.",
        )

    def _gauge(self, name: str, meaning: str) -> Gauge:
        gauge = Gauge(name, meaning, registry=self._registry)
        gauge.set(nan)
        return gauge

    def _look_up(self, facts: Facts) -> None:
        state = Gauge(
            "projection_state",
            "1 for the worker's state, 0 for all others. Anything but consuming for long: see"
            " /readyz for the reason.",
            ["state"],
            registry=self._registry,
        )
        for each in State:
            state.labels(each.value).set_function(partial(_is_in, facts, each))
        self._gauge(
            "projection_oldest_unsettled_seconds",
            "Age of the oldest delivery that is not settled; 0 if there is none. A rise: the"
            " database cannot commit, a handler hangs, or dead letters cannot be published.",
        ).set_function(lambda: _age(facts.oldest_unsettled_at))
        self._gauge(
            "projection_transaction_seconds",
            "Age of the transaction that runs now; 0 if none does. A rise: a handler or the disk"
            " hangs; /livez fails in the end.",
        ).set_function(lambda: _age(facts.projecting_since))
        self._gauge(
            "projection_loop_lag_seconds",
            "Seconds since the event loop last turned; below about 1 when well. A rise: a handler"
            " blocks it, or the machine is starved; /livez fails in the end.",
        ).set_function(lambda: _age(facts.loop_turned_at))
        self._gauge(
            "projection_breaker_open",
            "1 while a kind fails for every message and the batch is held; 0 otherwise. A rise: a"
            " bad deployment; see /readyz for the kind.",
        ).set_function(lambda: float(facts.is_breaker_open))
        self._gauge(
            "projection_last_commit_timestamp_seconds",
            "Unix time of the last commit. A standstill while messages wait: nothing is projected.",
        ).set_function(lambda: nan if facts.last_commit_at is None else facts.last_commit_at)


def _is_in(facts: Facts, state: State) -> float:
    return float(facts.state is state)


def _age(since: float | None) -> float:
    return 0.0 if since is None else time.monotonic() - since
