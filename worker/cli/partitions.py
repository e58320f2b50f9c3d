"""`partitions`: who consumes what, and what is behind."""

import asyncio
from dataclasses import asdict, dataclass

from worker.broker import commands
from worker.broker.partitions import queue_of
from worker.broker_settings import address_of
from worker.cli.app import AsJson, app
from worker.cli.current_topology import current_topology
from worker.cli.output import print_json, say, table
from worker.plurals import counted
from worker.settings import Settings, load_settings
from worker.store.consumption import Consumption
from worker.store.engines import store_of

# A worker reports every five seconds; one that is silent for this long has gone, or hangs.
SILENT_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Line:
    """What is known of one partition."""

    partition: int
    queue: str
    waiting: int | None
    """How many messages wait in the queue; None if the broker's user may not see it."""
    unsettled: int | None
    """How many the worker has taken and not settled; None if nobody reports."""
    oldest_seconds: float | None
    """The age of the oldest message that the worker has."""
    worker: str | None
    """The worker that last received messages of the partition; None if none ever did."""
    received_seconds: float | None
    """How long ago that was."""
    is_silent: bool
    """Whether that worker has stopped reporting."""


@app.command()
def partitions(*, as_json: AsJson = False) -> None:
    """Show each partition: who consumes it, how many messages wait, how old the oldest is.

    Workers report every few seconds what they consume. One that has received nothing since it
    started is not shown.
    """
    lines = asyncio.run(_look(load_settings()))
    if as_json:
        print_json([asdict(line) for line in lines])
    elif not lines:
        say("There is one queue, without partitions: the database is a file.")
    else:
        columns = ("queue", "waiting", "unsettled", "oldest", "worker", "last message")
        table(columns, map(_cells, lines))
        say(_summary(lines))


async def _look(settings: Settings) -> list[Line]:
    topology = await current_topology(settings)
    if topology.partitions is None:
        return []
    verified = await commands.verify(address_of(settings), topology)
    async with store_of(settings.store).reader() as reader:
        reports = {each.partition: each for each in await reader.consumption()}
    return [
        _line(partition, queue_of(topology.queue, partition), waiting, reports.get(partition))
        for partition, waiting in enumerate(verified.partitions)
    ]


def _line(partition: int, queue: str, waiting: int | None, report: Consumption | None) -> Line:
    if report is None:
        return Line(partition, queue, waiting, None, None, None, None, is_silent=False)
    is_silent = report.reported_seconds > SILENT_SECONDS
    age = None
    if report.oldest_seconds is not None and not is_silent:
        age = round(report.oldest_seconds + report.reported_seconds, 1)
    return Line(
        partition,
        queue,
        waiting,
        None if is_silent else report.unsettled,
        age,
        report.worker,
        round(report.received_seconds + report.reported_seconds, 1),
        is_silent,
    )


def _cells(line: Line) -> tuple[object, ...]:
    worker = line.worker
    if line.is_silent:
        worker = f"{worker} (silent)"
    return (
        line.queue,
        "?" if line.waiting is None else line.waiting,
        line.unsettled,
        _seconds(line.oldest_seconds),
        worker,
        None if line.received_seconds is None else f"{_seconds(line.received_seconds)} ago",
    )


def _seconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:,.0f} s"


def _summary(lines: list[Line]) -> str:
    workers = {line.worker for line in lines if line.worker and not line.is_silent}
    waiting = sum(line.waiting or 0 for line in lines)
    return (
        f"{counted(len(workers), 'worker')} on {counted(len(lines), 'partition')}; "
        f"{counted(waiting, 'message')} waiting."
    )
