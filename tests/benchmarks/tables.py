"""One table for each part of the benchmark."""

from collections.abc import Callable
from statistics import median

from tests.benchmarks import scaling_tables
from tests.benchmarks.bench import Result
from tests.benchmarks.contenders import CONTENDERS, WORKER
from tests.benchmarks.figures import in_rounds, median_rate, microseconds, rates, spread, thousands
from tests.benchmarks.report import Table
from tests.benchmarks.targets import targets


def tables(results: Result) -> list[Table]:
    """Return a table for each part that has figures; the targets first."""
    makers: dict[str, Callable[[Result], Table]] = {
        "throughput": throughput,
        "rebuild": rebuild,
        "late": late,
        "latency": latency,
        "batch_size": batch_size,
        "log_size": log_size,
        "outage": outage,
        "memory": memory,
        "idle": idle,
    }
    found = [make(results[name]) for name, make in makers.items() if name in results]
    found += scaling_tables.tables(results)
    reached = [target.cells() for target in targets(results)]
    if not reached:
        return found
    columns = ("target", "wanted", "measured", "", "what stands in the way")
    title = "Targets: ratios of medians within one run"
    return [Table(title, columns, reached, has_remarks=True), *found]


def throughput(part: Result) -> Table:
    """Compare the contenders."""
    worker = median_rate(part, WORKER) if WORKER in part["runs"] else None
    rows = []
    for name, runs in part["runs"].items():
        rate = median_rate(part, name)
        needs_broker = CONTENDERS[name].needs_queue
        rows.append(
            [
                CONTENDERS[name].title,
                thousands(runs[0]["messages"]),
                spread(rates(runs), thousands),
                f"{worker / rate:.2f}" if worker else "",
                f"{microseconds(runs, 'cpu_seconds'):.1f}",
                f"{microseconds(runs, 'broker_cpu_seconds'):.1f}" if needs_broker else "",
            ]
        )
    return Table(
        f"Throughput and CPU time per message{in_rounds(part)}",
        (
            "contender",
            "messages",
            "messages/s",
            "worker / this one",
            "CPU µs",
            "broker's CPU µs",
        ),
        rows,
    )


def rebuild(part: Result) -> Table:
    """Compare the rebuild with plain inserts."""
    rows = [
        [
            CONTENDERS[name].title,
            spread(rates(runs), thousands),
            f"{microseconds(runs, 'cpu_seconds'):.1f}",
        ]
        for name, runs in part["runs"].items()
    ]
    return Table(
        f"Rebuild of {part['messages']:,} messages{in_rounds(part)}",
        ("", "messages/s", "CPU µs"),
        rows,
    )


def late(part: Result) -> Table:
    """Compare late messages with the same messages in order."""
    rows = [
        [
            case.replace("_", " "),
            thousands(runs[0]["messages"]),
            spread(rates(runs), thousands),
            f"{max(run['longest_turn_seconds'] for run in runs) * 1_000:.0f}",
        ]
        for case, runs in part["runs"].items()
    ]
    return Table(
        f"Late messages, without a broker{in_rounds(part)}",
        ("", "messages", "messages/s", "longest turn of the event loop, ms"),
        rows,
    )


def latency(part: Result) -> Table:
    """Show the distribution at each load."""
    rows = [
        [each["name"], thousands(each["rate"]), who]
        + [f"{value:.1f}" for value in found["percentiles_ms"].values()]
        for each in part["loads"]
        for who, found in (
            ("worker, to committed", each),
            ("bare receiver, to received", each["floor"]),
        )
    ]
    columns = ("load", "messages/s", "", "p50", "p90", "p99", "p99.9", "max")
    return Table(f"Latency from publish, in milliseconds{in_rounds(part)}", columns, rows)


def batch_size(part: Result) -> Table:
    """Show throughput and latency by batch size."""
    rows = [
        [thousands(each["size"]), spread(rates(each["runs"]), thousands), f"{each['p99_ms']:.1f}"]
        for each in part["sizes"]
    ]
    columns = ("WORKER_BATCH_SIZE", "messages/s", f"p99 at {part['rate']:,.0f}/s, ms")
    return Table(f"Batch size{in_rounds(part)}", columns, rows)


def log_size(part: Result) -> Table:
    """Show the rate by log size."""
    empty = median(rates(part["sizes"][0]["runs"]))
    rows = [
        [
            thousands(each["size"]),
            spread(rates(each["runs"]), thousands),
            f"{median(rates(each['runs'])) / empty:.2f}",
            f"{microseconds(each['runs'], 'cpu_seconds'):.1f}",
        ]
        for each in part["sizes"]
    ]
    columns = ("messages in the log", "messages/s", "/ empty log", "CPU µs")
    title = f"Log size, {part['messages']:,} messages drained; at the end {_gigabytes(part)}"
    return Table(title, columns, rows)


def outage(part: Result) -> Table:
    """Show how a backlog drained."""
    drained = part["drained"]
    rows = [
        ["published throughout, messages/s", thousands(part["rate"])],
        ["worker down for", f"{part['started'] - part['stopped']:.1f} s"],
        ["peak backlog, messages", thousands(part["most"])],
        [
            "backlog drained after",
            f"{drained - part['started']:.1f} s" if drained else "not in time",
        ],
    ]
    return Table("Backlog after an outage", ("", ""), rows)


def memory(part: Result) -> Table:
    """Show the worker's peak memory."""
    rows = [[thousands(part["messages"]), f"{part['peak_bytes'] / 1_000_000:.1f} MB"]]
    return Table("Peak memory (VmHWM) of the worker", ("messages waiting", "peak"), rows)


def idle(part: Result) -> Table:
    """Show the CPU use of an idle worker."""
    rows = [[f"{part['seconds']:.0f} s", f"{part['share']:.2%}"]]
    return Table("CPU of the idle worker", ("watched for", "of one core"), rows)


def _gigabytes(part: Result) -> str:
    return f"the file has {part['bytes'] / 1_000_000_000:.2f} GB"
