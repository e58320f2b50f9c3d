"""Every metric: its name, its unit, and what a rise of it means.

Each worker has a registry of its own. Labels take few values, all of which are there from the
start, so that a rate can be told from the first event on.
"""

import math
from collections.abc import Callable, Iterable
from importlib.metadata import version
from time import monotonic

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.deliveries import BatchReport, Reason, Verdict
from worker.telemetry.health import Facts, State, ready

CONTENT_TYPE = CONTENT_TYPE_LATEST
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
COMMIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Metrics:
    """What one worker has counted."""

    def __init__(self, facts: Facts) -> None:
        """Start at zero; what is so at the moment comes from the facts, when somebody asks."""
        self._registry = registry = CollectorRegistry()
        self._messages = Counter(
            "projection_messages",
            "Messages settled, by outcome. Late ones cost a fold of their stream; many duplicates "
            "mean redeliveries or a publisher that repeats itself.",
            ["outcome"],
            registry=registry,
        )
        self._redelivered = Counter(
            "projection_messages_redelivered",
            "Settled messages that the broker had delivered before. Rises after each lost session.",
            registry=registry,
        )
        self._dead_letters = Counter(
            "projection_dead_letters",
            "Messages dead-lettered by this worker, by reason. Any rise wants a look: "
            "'projection-worker dead-letters list'.",
            ["reason"],
            registry=registry,
        )
        self._batch = Histogram(
            "projection_batch_messages",
            "Messages in one transaction. At the batch size all the time: the worker is behind.",
            buckets=BATCH_BUCKETS,
            registry=registry,
        )
        self._commit = Histogram(
            "projection_commit_seconds",
            "From the first decoded message of a batch to the end of its commit. A rise means a "
            "slow disk, or a lock.",
            buckets=COMMIT_BUCKETS,
            registry=registry,
        )
        self._opened = Counter(
            "projection_sessions_opened", "Sessions with the broker.", registry=registry
        )
        self._lost = Counter(
            "projection_sessions_lost",
            "Sessions that ended by a fault. A steady rise means an unstable network or broker.",
            registry=registry,
        )
        self._waiting = Gauge(
            "projection_waiting_messages",
            "Messages that the broker has ready, as of the last look. In the queue: how far the "
            "worker is behind. In dead_letters: what somebody has to look at.",
            ["queue"],
            registry=registry,
        )
        for verdict in Verdict:
            self._messages.labels(verdict.value)
        for reason in Reason:
            self._dead_letters.labels(reason.value)
        self.depths(math.nan, math.nan)
        registry.register(_FactsCollector(facts))
        ProcessCollector(registry=registry)

    def batch_settled(self, batch: BatchReport) -> None:
        """Count a batch."""
        for verdict, count in batch.verdicts.items():
            self._messages.labels(verdict.value).inc(count)
        for outcome in batch.rejections:
            if outcome.rejected is not None:
                self._dead_letters.labels(outcome.rejected.reason.value).inc()
        self._redelivered.inc(batch.redelivered)
        self._batch.observe(sum(batch.verdicts.values()))
        self._commit.observe(batch.commit_seconds)

    def session_opened(self) -> None:
        """Count a session."""
        self._opened.inc()

    def session_lost(self) -> None:
        """Count a session that ended by a fault."""
        self._lost.inc()

    def depths(self, queue: float, dead_letters: float) -> None:
        """Note how many messages the broker has ready."""
        self._waiting.labels("queue").set(queue)
        self._waiting.labels("dead_letters").set(dead_letters)

    def render(self) -> bytes:
        """Give all of them in Prometheus' text format, whose type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _FactsCollector(Collector):
    """What is so at the moment of asking."""

    def __init__(self, facts: Facts, clock: Callable[[], float] = monotonic) -> None:
        self._facts = facts
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        facts, now = self._facts, self._clock()
        unsettled = facts.oldest_unsettled_at
        yield GaugeMetricFamily(
            "projection_oldest_unsettled_seconds",
            "Age of the oldest delivery that was taken and is not settled; 0 if there is none. "
            "Above 60: the database or the dead letters hold the worker up.",
            value=0.0 if unsettled is None else now - unsettled,
        )
        yield GaugeMetricFamily(
            "projection_last_commit_timestamp_seconds",
            "Unix time of the last commit; absent before the first.",
            value=facts.last_commit_at,
        )
        yield GaugeMetricFamily(
            "projection_loop_idle_seconds",
            "Seconds since the event loop turned. Above 2: a handler blocks it.",
            value=now - facts.loop_turned_at,
        )
        yield GaugeMetricFamily(
            "projection_ready",
            "1 if the worker consumes and commits, as /readyz says.",
            value=float(ready(facts, now).is_well),
        )
        states = GaugeMetricFamily(
            "projection_state",
            "1 for the state the worker is in, 0 for all others.",
            None,
            ["state"],
        )
        for state in State:
            states.add_metric([state.value], float(state is facts.state))
        yield states
        build = GaugeMetricFamily(
            "projection_build_info", "1, with the worker's version.", None, ["version"]
        )
        build.add_metric([version("projection-worker")], 1.0)
        yield build
