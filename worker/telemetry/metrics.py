"""Every metric: its name, its unit, and what it means when it rises.

Labels have few values, and all of them exist from the start with 0, so that an alert on an increase
also sees the first dead letter. A number that is not known yet is NaN, so no alert fires on it.
"""

import time
from collections.abc import Sequence
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
from worker.store.consumption import Consumption
from worker.telemetry.health import Facts, State

# A batch has at most 2,000 messages (`worker/settings.py`).
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
# From one message on a fast disk to a batch held for a minute by a locked database.
COMMIT_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """What the worker counts and measures; updated by the service, read by any thread."""

    def __init__(self, facts: Facts, *, sqlite_version: str) -> None:
        """Count from 0; facts are looked up at each read."""
        # Metrics for the creation time of each counter would double their number. The switch is
        # global, but nothing else in the process has metrics.
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
        """Count a session that has ended unexpectedly."""
        self._sessions_lost.inc()

    def depths(self, ready: int | None, dead_letters: int | None) -> None:
        """Record how many messages wait in the queue and its dead-letter queue; None: unknown."""
        self._queue.set(nan if ready is None else ready)
        self._dead_letter_queue.set(nan if dead_letters is None else dead_letters)

    def partitions(self, waiting: Sequence[int | None], consumption: Sequence[Consumption]) -> None:
        """Record how many messages wait in each partition, and what this worker has of it."""
        for gauge in (self._partition_waiting, self._partition_oldest):
            # Their number may have become smaller.
            gauge.clear()
        for partition, count in enumerate(waiting):
            self._partition_waiting.labels(partition).set(nan if count is None else count)
        for each in consumption:
            self._partition_oldest.labels(each.partition).set(each.oldest_seconds or 0.0)

    def wal_bytes(self, size: int) -> None:
        """Record the size of the database's write-ahead log."""
        self._wal.set(size)

    def render(self) -> tuple[bytes, str]:
        """Return the metrics in Prometheus' text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _count_messages(self) -> None:
        messages = Counter(
            "projection_messages",
            "Messages settled, by outcome. If it does not rise while messages wait, nothing is"
            " projected. If late or orphan rises, publishers send out of order, or plans are"
            " missing.",
            ["outcome"],
            registry=self._registry,
        )
        self._messages = {verdict: messages.labels(verdict.value) for verdict in Verdict}
        dead_letters = Counter(
            "projection_dead_letters",
            "Messages dead-lettered, by reason. If it rises, a publisher sends messages that cannot"
            " be applied, or a handler fails; run 'projection-worker dead-letters list'.",
            ["reason"],
            registry=self._registry,
        )
        self._dead_letters = {reason: dead_letters.labels(reason.value) for reason in Reason}
        self._redelivered = Counter(
            "projection_redelivered_messages",
            "Messages that the broker marked as redelivered. If it rises, sessions are lost or"
            " workers die before they ack.",
            registry=self._registry,
        )
        self._long_folds = Counter(
            "projection_long_folds",
            "Folds of one stream that took longer than a second because of late messages. If it"
            " rises, an event has very many messages, and a publisher's clock may be wrong; the log"
            " line long_fold names the event.",
            registry=self._registry,
        )
        self._batch_size = Histogram(
            "projection_batch_messages",
            "Messages in one transaction. If it is near the batch size, messages arrive at least as"
            " fast as they are projected.",
            buckets=BATCH_BUCKETS,
            registry=self._registry,
        )
        self._commit_seconds = Histogram(
            "projection_commit_seconds",
            "Seconds from taking a batch to the end of its COMMIT, including time on hold. If it"
            " rises, the disk or a handler is slow, or the file is locked.",
            buckets=COMMIT_BUCKETS,
            registry=self._registry,
        )

    def _count_sessions(self) -> None:
        self._sessions_opened = Counter(
            "projection_sessions_opened",
            "Sessions opened with the broker. All but the first are reconnects.",
            registry=self._registry,
        )
        self._sessions_lost = Counter(
            "projection_sessions_lost",
            "Sessions with the broker that ended unexpectedly. If it rises, the broker or the"
            " network fails.",
            registry=self._registry,
        )

    def _measure_depths(self) -> None:
        self._queue = self._gauge(
            "projection_queue_messages",
            "Messages that wait in the queue, undelivered. If it rises, messages arrive faster than"
            " they are projected.",
        )
        self._dead_letter_queue = self._gauge(
            "projection_dead_letter_queue_messages",
            "Messages that wait in the dead-letter queue. If it rises, they need an operator.",
        )
        self._partition_waiting = Gauge(
            "projection_partition_messages",
            "Messages that wait in a partition, undelivered. If one rises and the others do not, a"
            " chat is busier than one worker can follow, or the partition's worker hangs.",
            ["partition"],
            registry=self._registry,
        )
        self._partition_oldest = Gauge(
            "projection_partition_oldest_seconds",
            "Age of the oldest message of a partition that this worker has and has not settled, by"
            " the publisher's clock; 0 if it has none. Only for partitions from which it has"
            " received messages. If it rises, the worker is behind.",
            ["partition"],
            registry=self._registry,
        )
        self._wal = self._gauge(
            "projection_wal_bytes",
            "Size of the database's write-ahead log. If it keeps rising, a reader keeps its"
            " transaction open, so that no checkpoint completes.",
        )

    def _gauge(self, name: str, meaning: str) -> Gauge:
        gauge = Gauge(name, meaning, registry=self._registry)
        gauge.set(nan)
        return gauge

    def _look_up(self, facts: Facts) -> None:
        state = Gauge(
            "projection_state",
            "1 for the worker's state, 0 for all others. If it is not consuming for long, /readyz"
            " has the reason.",
            ["state"],
            registry=self._registry,
        )
        for each in State:
            state.labels(each.value).set_function(partial(_is_in, facts, each))
        self._gauge(
            "projection_oldest_unsettled_seconds",
            "Age of the oldest unsettled delivery; 0 if there is none. If it rises, the database"
            " cannot commit, a handler hangs, or dead letters cannot be published.",
        ).set_function(lambda: _age(facts.oldest_unsettled_at))
        self._gauge(
            "projection_transaction_seconds",
            "Age of the running transaction; 0 if there is none. If it rises, a handler or the disk"
            " hangs; /livez eventually fails.",
        ).set_function(lambda: _age(facts.projecting_since))
        self._gauge(
            "projection_loop_lag_seconds",
            "Seconds since the event loop last turned; normally up to 1. If it rises, a handler"
            " blocks the loop, or the machine is short of CPU; /livez eventually fails.",
        ).set_function(lambda: _age(facts.loop_turned_at))
        self._gauge(
            "projection_breaker_open",
            "1 while a kind fails for every message and the batch is held; 0 otherwise. The usual"
            " cause is a bad deployment; /readyz names the kind.",
        ).set_function(lambda: float(facts.is_breaker_open))
        self._gauge(
            "projection_last_commit_timestamp_seconds",
            "Unix time of the last commit. If it does not rise while messages wait, nothing is"
            " projected.",
        ).set_function(lambda: nan if facts.last_commit_at is None else facts.last_commit_at)


def _is_in(facts: Facts, state: State) -> float:
    return float(facts.state is state)


def _age(since: float | None) -> float:
    return 0.0 if since is None else time.monotonic() - since
