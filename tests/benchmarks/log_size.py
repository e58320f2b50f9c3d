"""Whether the worker stays fast when its log is large."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks import traffic
from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.database import Fold, connect, create, write
from tests.benchmarks.running import Run, drain
from tests.benchmarks.traffic import Sent, Traffic
from tests.database import count_log

QUEUE = "benchmark.log"
# Filled without crash safety, and with pages in random order, as in a log that has grown.
FILL_BATCH = 2_000
PIECE = 100_000


class Growing:
    """One publisher's endless log, and the file with what has been published of it."""

    def __init__(self, database: Path) -> None:
        """Begin with an empty file from `create`."""
        self._database = database
        self._traffic = Traffic()
        self._fold = Fold()

    def fill(self, messages: int) -> None:
        """Write the next messages until the log has this many."""
        missing = messages - count_log(self._database)
        with closing(connect(self._database, synchronous="OFF")) as connection:
            for start in range(0, missing, PIECE):
                piece = self._traffic.take(min(PIECE, missing - start))
                write(connection, self._fold.batches(piece, FILL_BATCH))
            _settle(connection)

    def take(self, messages: int) -> list[Sent]:
        """Return the next messages, for the worker to write."""
        sent = self._traffic.take(messages)
        self._fold.batch(sent)
        return sent


def _settle(connection: sqlite3.Connection) -> None:
    """Empty the write-ahead log, so that the worker need not checkpoint it."""
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


async def log_size(bench: Bench, *, sizes: Sequence[int], rounds: int, messages: int) -> Result:
    """Drain into a growing log; at its largest size, in turn with empty ones."""
    large, empty = bench.folder / "large.db", bench.folder / "empty.db"
    await create(large)
    growing = Growing(large)
    runs: dict[int, list[Run]] = {size: [] for size in sizes}
    for size in sizes[:-1]:
        growing.fill(size)
        runs[size].append(await _drain(bench, large, growing.take(messages), size))
    growing.fill(sizes[-1])
    for _ in range(rounds):
        runs[sizes[0]].append(await _drain(bench, empty, Traffic().take(messages), 0))
        empty.unlink()
        runs[sizes[-1]].append(await _drain(bench, large, growing.take(messages), sizes[-1]))
    size_bytes = large.stat().st_size
    large.unlink()
    return {
        "messages": messages,
        "rounds": rounds,
        "bytes": size_bytes,
        "sizes": [{"size": n, "runs": [asdict(each) for each in runs[n]]} for n in sizes],
    }


async def _drain(bench: Bench, database: Path, sent: Sequence[Sent], size: int) -> Run:
    file = bench.folder / "messages"
    traffic.write(file, sent)
    await bench.broker.declare([QUEUE])
    await bench.broker.publish(file)
    done = await drain(bench.broker, QUEUE, database, len(sent))
    await bench.broker.delete([QUEUE])
    bench.say(f"  {size:,} messages in the log: {done.rate:,.0f} messages/s")
    return done
