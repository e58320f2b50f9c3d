"""The targets, whether each has been reached, and what limits each figure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.benchmarks.bench import Result
from tests.benchmarks.contenders import (
    AIO_PIKA,
    FASTSTREAM,
    FASTSTREAM_POSTGRES,
    HANDWRITTEN,
    HANDWRITTEN_POSTGRES,
    RAW_AIORMQ,
    RAW_SOCKET,
    RAW_SQLITE,
    REBUILD,
    WORKER,
    WORKER_POSTGRES,
)
from tests.benchmarks.dead_lettering import CLIENT, DEAD_LETTERING
from tests.benchmarks.figures import median_rate, rates, thousands

MEGABYTE = 1_000_000
MEMORY_MESSAGES = 1_000_000
LARGE_LOG = 5_000_000

BATCHES = "statements of a batch, in PostgreSQL and in Python"
# Each contender, its title, the target ratio, and what the worker does in addition.
RATIOS = (
    (FASTSTREAM, "FastStream with one commit per message", 12, "an fsync for each batch"),
    (HANDWRITTEN, "hand-written loop with one commit per message", 8, "an fsync for each batch"),
    (AIO_PIKA, "aio-pika that only acks each message", 1.5, "decoding and SQLite, in Python"),
    (RAW_AIORMQ, "raw aiormq that does nothing", 0.65, "decoding and SQLite, in Python"),
    # The two limits: no worker on this machine can be faster than the disk or the broker.
    (RAW_SQLITE, "plain sqlite3 (the disk's limit)", 0.4, "decoding and handlers, on one core"),
    (RAW_SOCKET, "raw socket (the broker's limit)", 0.15, "all work on a message, on one core"),
)
RATIOS_ON_POSTGRES = (
    (FASTSTREAM_POSTGRES, "FastStream + asyncpg, a commit per message", 8, BATCHES),
    (HANDWRITTEN_POSTGRES, "aio-pika + asyncpg, a commit per message", 8, BATCHES),
    (WORKER, "the worker on SQLite", 0.5, "another process and a protocol between them"),
)
SHARED_CORES = "workers, RabbitMQ and PostgreSQL share the cores"
PAGES = "three pages of indexes for a random event id"
TAIL_FOLDS = "what comes after a late message is folded again, from rows that are read and put back"
ONE_MESSAGE = "a piece of the log is decoded in one go; other processes on the machine count, too"
PYTHON_FOLDS = "pydantic and the handlers"
WORKER_READS = "the worker also consumes, decodes and acks"
ONE_PROCESS = "one process; plain sqlite3 has no more"
LIBRARIES = "the libraries, and 2,000 messages on the way"
HEARTBEATS = "heartbeats, and a look at the topology every 5 s"
# The load, the percentile, and the target in milliseconds.
LATENCIES = (
    ("1,000/s", 0.5, 3, "1 ms of CPU for any transaction, and an fsync"),
    ("1,000/s", 0.99, 10, "the same, twice: the one before is waited for"),
    ("50 %", 0.99, 25, "two cores for broker, publisher and worker"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """One figure and its target."""

    what: str
    wanted: float
    measured: float
    shown: Callable[[float], str]
    obstacle: str
    """What limits the figure."""
    is_floor: bool = True
    """Whether the target is a minimum, or a maximum."""

    @property
    def is_reached(self) -> bool:
        """Whether the figure meets its target."""
        if self.is_floor:
            return self.measured >= self.wanted
        return self.measured <= self.wanted

    def cells(self) -> list[str]:
        """Return the target as a row of a table."""
        sign = "≥" if self.is_floor else "≤"
        return [
            self.what,
            f"{sign} {self.shown(self.wanted)}",
            self.shown(self.measured),
            "reached" if self.is_reached else "missed",
            self.obstacle,
        ]


def targets(results: Result) -> list[Target]:
    """Return every target for which there are figures."""
    parts: dict[str, Callable[[Any], Iterator[Target]]] = {
        "throughput": _throughput,
        "log_size": _log_size,
        "rebuild": _rebuild,
        "dead_lettering": _dead_lettering,
        "late": _late,
        "memory": _memory,
        "idle": _idle,
        "latency": _latency,
        "on_postgres": _on_postgres,
        "scaling": _scaling,
    }
    return [
        target
        for name, found in parts.items()
        if name in results
        for target in found(results[name])
    ]


def _throughput(part: Result) -> Iterator[Target]:
    for name, title, wanted, obstacle in RATIOS:
        if {WORKER, name} <= part["runs"].keys():
            ratio = median_rate(part, WORKER) / median_rate(part, name)
            yield Target(f"worker / {title}", wanted, ratio, _ratio, obstacle)


def _log_size(part: Result) -> Iterator[Target]:
    empty, *_, large = ((each["size"], median(rates(each["runs"]))) for each in part["sizes"])
    if large[0] >= LARGE_LOG:
        what = f"rate with {large[0]:,} messages in the log / with none"
        yield Target(what, 0.85, large[1] / empty[1], _ratio, PAGES)


def _rebuild(part: Result) -> Iterator[Target]:
    rate = median_rate(part, REBUILD)
    what = "rebuild / raw sqlite3 that inserts the same"
    yield Target(what, 0.5, rate / median_rate(part, RAW_SQLITE), _ratio, PYTHON_FOLDS)
    yield Target("rebuild, messages/s", 150_000, rate, thousands, ONE_PROCESS)


def _dead_lettering(part: Result) -> Iterator[Target]:
    ratio = median_rate(part, DEAD_LETTERING) / median_rate(part, CLIENT)
    what = "dead-lettering / aio-pika that publishes the same"
    yield Target(what, 0.5, ratio, _ratio, WORKER_READS)


def _late(part: Result) -> Iterator[Target]:
    for late, in_order, title in (
        ("shuffled", "in_order", "all messages late, each stream shuffled"),
        ("wrong_clock", "one_stream", f"one stream of {part['long_stream']:,}, a wrong clock"),
    ):
        ratio = median_rate(part, late) / median_rate(part, in_order)
        yield Target(f"{title} / in order", 1 / 3, ratio, _ratio, TAIL_FOLDS)
    longest = median(run["longest_turn_seconds"] for run in part["runs"]["one_late"])
    what = f"event loop's longest turn, {part['long_stream']:,} messages folded again"
    yield Target(what, 50, longest * 1_000, _milliseconds, ONE_MESSAGE, is_floor=False)


def _memory(part: Result) -> Iterator[Target]:
    what = f"peak memory, {part['messages']:,} messages waiting"
    peak = part["peak_bytes"]
    yield Target(what, 80 * MEGABYTE, peak, _megabytes, LIBRARIES, is_floor=False)


def _idle(part: Result) -> Iterator[Target]:
    what, share = "CPU when idle, of one core", part["share"]
    yield Target(what, 0.005, share, _percent, HEARTBEATS, is_floor=False)


def _latency(part: Result) -> Iterator[Target]:
    for load, share, wanted, obstacle in LATENCIES:
        for each in part["loads"]:
            if each["name"] == load:
                at = load if load == "1,000/s" else f"{load} of the highest rate"
                what = f"publish to committed at {at}, p{share * 100:.0f}"
                measured = each["percentiles_ms"][str(share)]
                yield Target(what, wanted, measured, _milliseconds, obstacle, is_floor=False)


def _on_postgres(part: Result) -> Iterator[Target]:
    for name, title, wanted, obstacle in RATIOS_ON_POSTGRES:
        ratio = median_rate(part, WORKER_POSTGRES) / median_rate(part, name)
        yield Target(f"worker on PostgreSQL / {title}", wanted, ratio, _ratio, obstacle)


def _scaling(part: Result) -> Iterator[Target]:
    alone = median_rate(part, "1")
    for workers in [each for each in part["runs"] if each != "1"]:
        what = f"{workers} workers on {part['cores']} cores / one worker"
        yield Target(what, 0.9, median_rate(part, workers) / alone, _ratio, SHARED_CORES)


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _megabytes(value: float) -> str:
    return f"{value / MEGABYTE:.1f} MB"


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms"
