"""The tables of several workers on PostgreSQL, and what follows from them for other machines."""

from collections.abc import Iterator
from statistics import median
from typing import Any

from tests.benchmarks.bench import Result
from tests.benchmarks.contenders import CONTENDERS, WORKER_POSTGRES
from tests.benchmarks.figures import (
    in_rounds,
    median_rate,
    microseconds,
    rates,
    spread,
    thousands,
)
from tests.benchmarks.model import ASSUMPTIONS, Costs, Model
from tests.benchmarks.report import Table

CORES = (2, 4, 8, 16, 32)
MEGABYTE = 1_000_000


def tables(results: Result) -> Iterator[Table]:
    """Return the tables of the parts that have figures."""
    if "on_postgres" in results:
        yield on_postgres(results["on_postgres"])
    if "scaling" in results:
        part = results["scaling"]
        yield together(part)
        yield costs(part)
        yield capacity(part)
        yield Table("The model assumes", ("", "but"), ASSUMPTIONS, has_remarks=True)
    if "takeover" in results:
        yield takeover(results["takeover"])


def on_postgres(part: Result) -> Table:
    """Compare the contenders."""
    worker = median_rate(part, WORKER_POSTGRES)
    rows = [
        [
            CONTENDERS[name].title,
            thousands(runs[0]["messages"]),
            spread(rates(runs), thousands),
            f"{worker / median_rate(part, name):.2f}",
            *(f"{microseconds(runs, f'{of}cpu_seconds'):.1f}" for of in ("", "broker_")),
            f"{microseconds(runs, 'database_cpu_seconds'):.1f}"
            if CONTENDERS[name].is_on_postgres
            else "",
        ]
        for name, runs in part["runs"].items()
    ]
    columns = ("contender", "messages", "messages/s", "worker / it", "µs", "RabbitMQ", "PostgreSQL")
    title = f"On PostgreSQL; CPU time per message in µs, its own and the engines'{in_rounds(part)}"
    return Table(title, columns, rows)


def together(part: Result) -> Table:
    """Show what several workers do together."""
    alone = median_rate(part, "1")
    rows = [
        [
            workers,
            spread(rates(runs), thousands),
            f"{median_rate(part, workers) / alone:.2f}",
            f"{_per_message(runs, 'late'):.2%}",
            f"{median(run['lock_share'] for run in runs):.2%}",
            thousands(median(run["mean_batch"] for run in runs)),
            f"{max(run['peak_bytes'] for run in runs) / MEGABYTE:.1f} MB",
            "; ".join(" ".join(map(str, run["partitions"])) for run in runs),
        ]
        for workers, runs in part["runs"].items()
    ]
    columns = (
        "workers",
        "messages/s",
        "/ one worker",
        "late",
        "waiting for locks",
        "in a transaction",
        "peak of one",
        "partitions of each",
    )
    return Table(f"Workers on {part['partitions']} partitions{in_rounds(part)}", columns, rows)


def costs(part: Result) -> Table:
    """Show the CPU time per message of each kind of process."""
    rows = []
    for workers, runs in part["runs"].items():
        each, used = _costs(runs), median(map(_used, runs)) / part["cores"]
        others = median(map(_others, runs))
        figures = (each.workers, each.broker, each.sessions, each.background, each.total)
        wal = f"{_per_message(runs, 'wal_bytes'):,.0f}"
        shares = (f"{used:.0%}", f"{others / part['cores']:.0%}")
        rows.append([workers, *(f"{figure:.1f}" for figure in figures), *shares, wal])
    columns = (
        "workers",
        "theirs",
        "RabbitMQ",
        "PostgreSQL's sessions",
        "its others",
        "sum",
        "cores used",
        "by other programs",
        "bytes of WAL",
    )
    return Table(f"CPU time per message in µs, on {part['cores']} cores", columns, rows)


def capacity(part: Result) -> Table:
    """Show what the model says about other machines, and what it says about this one."""
    model = model_of(part)
    wal = _per_message(part["runs"][max(part["runs"], key=int)], "wal_bytes")
    rows = [
        [
            f"{cores}",
            f"{model.workers_for(cores)}",
            thousands(model.by_cores(cores)),
            *(
                f"{model.by_cores(cores) * each / 1e6:.1f}"
                for each in (model.costs.workers, model.costs.broker, model.costs.database)
            ),
            f"{model.by_cores(cores) * wal / MEGABYTE:.1f}",
        ]
        for cores in CORES
    ]
    measured = "; ".join(
        f"{workers}: {thousands(model.rate(int(workers), part['cores']))}"
        f" ({thousands(median_rate(part, workers))})"
        for workers in part["runs"]
    )
    columns = (
        "cores",
        "workers that use them up",
        "messages/s",
        "cores of workers",
        "of RabbitMQ",
        "of PostgreSQL",
        "WAL, MB/s",
    )
    title = f"Model; here it says for 1, 2, 4 workers (measured): {measured} messages/s"
    return Table(title, columns, rows)


def takeover(part: Result) -> Table:
    """Show how long messages waited while partitions moved."""
    seconds = part["longest_seconds"]
    rows = [[what, spread(each, _seconds), f"{len(each)}"] for what, each in seconds.items()]
    joined = [each for each in part["joined_seconds"] if each is not None]
    first = spread(joined, _seconds) if joined else "none came (RabbitMQ before 4.0 moves none)"
    rows.append(["from the start of a worker to its first message", first, f"{len(joined)}"])
    usual = f"otherwise {_seconds(part['usual_seconds'])}"
    title = f"Longest wait of a message while a partition moves, at {part['rate']:,.0f}/s; {usual}"
    return Table(title, ("", "seconds: median (least..greatest)", "times"), rows)


def model_of(part: Result) -> Model:
    """Return the model: costs and use of the cores with the most workers, the rate with one."""
    most = part["runs"][max(part["runs"], key=int)]
    usable = median(_used(run) / (part["cores"] - _others(run)) for run in most)
    return Model(_costs(most), median_rate(part, "1"), usable)


def _costs(runs: list[dict[str, Any]]) -> Costs:
    return Costs(
        workers=microseconds(runs, "cpu_seconds"),
        broker=microseconds(runs, "broker_cpu_seconds"),
        sessions=microseconds(runs, "sessions_cpu_seconds"),
        background=microseconds(runs, "background_cpu_seconds"),
    )


def _used(run: dict[str, Any]) -> float:
    """Return how many cores the workers and both engines used."""
    parts = ("", "broker_", "sessions_", "background_")
    used: float = sum(run[f"{each}cpu_seconds"] for each in parts) / run["seconds"]
    return used


def _others(run: dict[str, Any]) -> float:
    """Return how many cores everything else on the machine used."""
    busy: float = run["busy_seconds"] / run["seconds"]
    return max(0.0, busy - _used(run))


def _per_message(runs: list[dict[str, Any]], field: str) -> float:
    each: list[float] = [run[field] / run["messages"] for run in runs]
    return median(each)


def _seconds(value: float) -> str:
    return f"{value:.2f}"
