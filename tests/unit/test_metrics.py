import math
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from worker.deliveries import BatchReport, Delivery, Outcome, Reason, Rejected, Verdict
from worker.telemetry.health import Facts, State
from worker.telemetry.metrics import Metrics

NAMES = [
    "projection_messages_total",
    "projection_redelivered_messages_total",
    "projection_long_folds_total",
    "projection_batch_messages",
    "projection_commit_seconds",
    "projection_oldest_unsettled_seconds",
    "projection_last_commit_timestamp_seconds",
    "projection_sessions_opened_total",
    "projection_sessions_lost_total",
    "projection_dead_letters_total",
    "projection_state",
    "projection_loop_lag_seconds",
    "projection_transaction_seconds",
    "projection_breaker_open",
    "projection_queue_messages",
    "projection_dead_letter_queue_messages",
    "projection_partition_messages",
    "projection_partition_oldest_seconds",
    "projection_wal_bytes",
    "projection_worker_info",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "process_start_time_seconds",
]
UNKNOWN_AT_FIRST = [
    "projection_queue_messages",
    "projection_dead_letter_queue_messages",
    "projection_wal_bytes",
    "projection_last_commit_timestamp_seconds",
]


@pytest.fixture
def facts() -> Facts:
    return Facts()


@pytest.fixture
def metrics(facts: Facts) -> Metrics:
    return Metrics(facts, sqlite_version="3.99.1")


def text(metrics: Metrics) -> str:
    return metrics.render()[0].decode()


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Return name, value of its only label -> number."""
    return {
        (sample.name, "/".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text(metrics))
        for sample in family.samples
    }


def outcome(verdict: Verdict, reason: Reason | None = None, *, again: bool = False) -> Outcome:
    rejected = None if reason is None else Rejected(reason, "no")
    return Outcome(Delivery(b"", redelivered=again), verdict, rejected)


class TestEveryMetric:
    @pytest.mark.parametrize("name", NAMES)
    def test_is_there_from_the_start_with_its_meaning(self, metrics: Metrics, name: str) -> None:
        """A dashboard can be built before anything goes wrong."""
        meaning = [line for line in text(metrics).splitlines() if f"# HELP {name} " in line]

        assert len(meaning) == 1
        assert len(meaning[0]) > len(f"# HELP {name} ")

    def test_of_the_worker_is_in_the_list(self, metrics: Metrics) -> None:
        """No metric is added or renamed unnoticed."""
        seen = {line.split()[2] for line in text(metrics).splitlines() if "# HELP proj" in line}

        assert seen == {name for name in NAMES if name.startswith("projection_")}

    def test_is_read_as_what_the_content_type_says(self, metrics: Metrics) -> None:
        """Prometheus uses the header to parse the body."""
        assert metrics.render()[1].startswith("text/plain; version=")

    @pytest.mark.parametrize("name", UNKNOWN_AT_FIRST)
    def test_that_nobody_knows_yet_fires_no_alert(self, metrics: Metrics, name: str) -> None:
        """An empty queue differs from a queue that has not been queried yet."""
        assert math.isnan(samples(metrics)[name, ""])

    def test_belongs_to_one_worker(self, facts: Facts, metrics: Metrics) -> None:
        """Two workers in one process count separately."""
        other = Metrics(facts, sqlite_version="3")
        other.session_lost()

        assert samples(metrics)["projection_sessions_lost_total", ""] == 0


class TestABatch:
    def test_is_counted_by_outcome_and_reason(self, metrics: Metrics) -> None:
        """The metrics show what the report says, and all others stay 0."""
        outcomes = [
            outcome(Verdict.APPLIED),
            outcome(Verdict.APPLIED),
            outcome(Verdict.DUPLICATE, again=True),
            outcome(Verdict.REJECTED, Reason.NOT_JSON, again=True),
            outcome(Verdict.REJECTED, Reason.TOO_LARGE),
            outcome(Verdict.REJECTED, Reason.TOO_LARGE),
        ]

        metrics.batch_settled(BatchReport.of(outcomes, 0.3))
        metrics.batch_settled(BatchReport.of([outcome(Verdict.LATE)], 0.2))

        shown = samples(metrics)
        by_outcome = {v: shown["projection_messages_total", v] for v in Verdict}
        by_reason = {r: shown["projection_dead_letters_total", r] for r in Reason}
        assert by_outcome == {"applied": 2, "late": 1, "duplicate": 1, "orphan": 0, "rejected": 3}
        assert by_reason == dict.fromkeys(Reason, 0) | {"not_json": 1, "too_large": 2}
        assert shown["projection_redelivered_messages_total", ""] == 2

    def test_is_measured(self, metrics: Metrics) -> None:
        """Sizes and seconds are counted in their buckets."""
        metrics.batch_settled(BatchReport.of([outcome(Verdict.APPLIED)] * 2, 0.3))
        metrics.batch_settled(BatchReport.of([outcome(Verdict.APPLIED)] * 7, 0.004))

        shown = samples(metrics)
        assert shown["projection_batch_messages_bucket", "2.0"] == 1
        assert shown["projection_batch_messages_bucket", "10.0"] == 2
        assert shown["projection_batch_messages_sum", ""] == 9
        assert shown["projection_commit_seconds_bucket", "0.005"] == 1
        assert shown["projection_commit_seconds_bucket", "0.5"] == 2
        assert shown["projection_commit_seconds_count", ""] == 2


class TestWhatIsTold:
    def test_is_shown(self, metrics: Metrics) -> None:
        """Sessions, depths and the size of the write-ahead log have metrics."""
        metrics.session_opened()
        metrics.session_opened()
        metrics.session_lost()
        metrics.depths(ready=5, dead_letters=3)
        metrics.wal_bytes(4096)

        shown = samples(metrics)
        assert shown["projection_sessions_opened_total", ""] == 2
        assert shown["projection_sessions_lost_total", ""] == 1
        assert shown["projection_queue_messages", ""] == 5
        assert shown["projection_dead_letter_queue_messages", ""] == 3
        assert shown["projection_wal_bytes", ""] == 4096

    def test_is_unknown_where_it_may_not_be_seen(self, metrics: Metrics) -> None:
        """An earlier depth is dropped, too, because it would look current."""
        metrics.depths(ready=5, dead_letters=3)
        metrics.depths(ready=None, dead_letters=None)

        shown = samples(metrics)
        assert math.isnan(shown["projection_queue_messages", ""])
        assert math.isnan(shown["projection_dead_letter_queue_messages", ""])

    def test_names_the_versions(self, metrics: Metrics) -> None:
        """A dashboard shows which versions were running at any time."""
        assert 'sqlite="3.99.1",version="0.1.0"' in text(metrics)


class TestTheFacts:
    @pytest.mark.parametrize("state", State)
    def test_give_one_state(self, facts: Facts, metrics: Metrics, state: State) -> None:
        """Exactly one of all states is 1."""
        facts.state = state

        shown = {s: samples(metrics)["projection_state", s] for s in State}
        assert shown == dict.fromkeys(State, 0) | {state: 1}

    @pytest.mark.parametrize(
        ("fact", "name"),
        [
            ("oldest_unsettled_at", "projection_oldest_unsettled_seconds"),
            ("projecting_since", "projection_transaction_seconds"),
            ("loop_turned_at", "projection_loop_lag_seconds"),
        ],
    )
    def test_grow_older(self, facts: Facts, metrics: Metrics, fact: str, name: str) -> None:
        """The age is computed when it is read."""
        setattr(facts, fact, time.monotonic() - 100)
        first = samples(metrics)[name, ""]
        second = samples(metrics)[name, ""]

        assert 100 <= first < second
        setattr(facts, fact, time.monotonic())
        assert samples(metrics)[name, ""] < 100

    @pytest.mark.parametrize(
        "name", ["projection_oldest_unsettled_seconds", "projection_transaction_seconds"]
    )
    def test_have_no_age_when_there_is_nothing(self, metrics: Metrics, name: str) -> None:
        """Without unsettled deliveries or running work it is 0, so that a graph falls."""
        assert samples(metrics)[name, ""] == 0

    def test_give_the_last_commit(self, facts: Facts, metrics: Metrics) -> None:
        """It is in Unix time, because dashboards subtract it from now."""
        facts.last_commit_at = 1_790_000_000.5

        assert samples(metrics)["projection_last_commit_timestamp_seconds", ""] == 1_790_000_000.5
