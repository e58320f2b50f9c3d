"""Which key the log should have: the trial behind `worker/store/schema.sql`.

    .venv/bin/python -m tests.benchmarks.log_key [MESSAGES]

Three tables take the same batches in turn, so that a noisy machine is noisy for all of them:
- position: clustered by (event_id, sequence, occurred_at, id); duplicates by reading the stream
- heads: clustered by (event_id, id), with the head of each stream in a table of its own
- index: clustered by (event_id, id), with an index on the position
"""

import argparse
import json
import random
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

BATCH = 500
OPEN_EVENTS = 20_000
BODY = "x" * 220
AT = "2026-04-27T10:39:03.120000Z"

Row = tuple[str, str, int, str, str, str]
COLUMNS = "event_id TEXT, id TEXT, sequence INTEGER, occurred_at TEXT, kind TEXT, body TEXT"
TABLES = {
    "position": [
        f"CREATE TABLE log ({COLUMNS}, PRIMARY KEY (event_id, sequence, occurred_at, id)) "
        "WITHOUT ROWID"
    ],
    "heads": [
        f"CREATE TABLE log ({COLUMNS}, PRIMARY KEY (event_id, id)) WITHOUT ROWID",
        "CREATE TABLE streams (event_id TEXT PRIMARY KEY, sequence INTEGER, occurred_at TEXT, "
        "id TEXT) WITHOUT ROWID",
    ],
    "index": [
        f"CREATE TABLE log ({COLUMNS}, PRIMARY KEY (event_id, id)) WITHOUT ROWID",
        "CREATE INDEX by_position ON log (event_id, sequence, occurred_at, id)",
    ],
}
INSERT = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)"
IN_STREAM = "SELECT log.id FROM json_each(?) AS s JOIN log ON log.event_id = s.value"
KNOWN = """
    SELECT log.body FROM json_each(?) AS pair
    JOIN log ON log.event_id = pair.value ->> 0 AND log.id = pair.value ->> 1
"""
HEADS = "SELECT streams.* FROM json_each(?) AS s JOIN streams ON streams.event_id = s.value"
LAST = """
    SELECT (SELECT sequence FROM log WHERE log.event_id = s.value
            ORDER BY sequence DESC, occurred_at DESC, log.id DESC LIMIT 1)
    FROM json_each(?) AS s
"""
ADVANCE = """
    INSERT INTO streams VALUES (?, ?, ?, ?) ON CONFLICT (event_id) DO UPDATE
    SET sequence = excluded.sequence, occurred_at = excluded.occurred_at, id = excluded.id
"""


def write(name: str, connection: sqlite3.Connection, batch: list[Row]) -> None:
    """Do for a batch what the projector does with the log."""
    streams = json.dumps(sorted({row[0] for row in batch}))
    connection.execute("BEGIN IMMEDIATE")
    if name == "position":
        connection.execute(IN_STREAM, (streams,)).fetchall()
        by_position: list[Row] = sorted(batch, key=lambda row: (row[0], row[2]))
        connection.executemany(INSERT, by_position)
    else:
        pairs = json.dumps([row[:2] for row in batch])
        connection.execute(KNOWN, (pairs,)).fetchall()
        connection.execute(HEADS if name == "heads" else LAST, (streams,)).fetchall()
        connection.executemany(INSERT, sorted(batch))
    if name == "heads":
        heads = {row[0]: (row[0], row[2], row[3], row[1]) for row in batch}
        connection.executemany(ADVANCE, sorted(heads.values()))
    connection.execute("COMMIT")


def messages(seed: int) -> Iterator[Row]:
    """Give messages of events that come and go, with random ids, for ever."""
    rng = random.Random(seed)

    def identifier() -> str:
        return str(uuid.UUID(int=rng.getrandbits(128)))

    events = [identifier() for _ in range(OPEN_EVENTS)]
    sequence = 0
    while True:
        sequence += 1
        place = rng.randrange(OPEN_EVENTS)
        if rng.random() < 0.2:
            events[place] = identifier()
        yield (events[place], identifier(), sequence, AT, "event_started", BODY)


def open_table(folder: Path, name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(folder / f"{name}.db", isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -16384"):
        connection.execute(f"PRAGMA {pragma}")
    for statement in TABLES[name]:
        connection.execute(statement)
    return connection


def synchronize(tables: dict[str, sqlite3.Connection], mode: str) -> None:
    for connection in tables.values():
        connection.execute(f"PRAGMA synchronous = {mode}")


def show(what: str, figures: dict[str, str]) -> None:
    print(f"{what:34}" + "".join(f"{name}: {value:>9}  " for name, value in figures.items()))


def main(total: int, folder: Path) -> None:
    tables = {name: open_table(folder, name) for name in TABLES}
    source = messages(seed=1)

    def seconds_for(make: Callable[[], list[Row]], batches: int) -> dict[str, float]:
        taken: dict[str, list[float]] = {name: [] for name in tables}
        for _ in range(batches):
            batch = make()
            for name, connection in tables.items():
                started = time.perf_counter()
                write(name, connection, batch)
                taken[name].append(time.perf_counter() - started)
        return {name: statistics.median(each) for name, each in taken.items()}

    def batch(size: int = BATCH) -> list[Row]:
        return [next(source) for _ in range(size)]

    rates = seconds_for(batch, 200)
    show("messages/s, empty to 100,000", {n: f"{BATCH / s:,.0f}" for n, s in rates.items()})
    synchronize(tables, "OFF")
    seconds_for(lambda: batch(50_000), max(1, (total - 100_000) // 50_000))
    synchronize(tables, "FULL")
    rates = seconds_for(batch, 200)
    show(f"messages/s at {total:,}", {n: f"{BATCH / s:,.0f}" for n, s in rates.items()})

    seconds_for(lambda: [("one", *row[1:]) for row in batch(50_000)], 1)
    alone = seconds_for(lambda: [("one", *row[1:]) for row in batch(1)], 50)
    show("ms a message, stream of 50,000", {n: f"{s * 1000:.2f}" for n, s in alone.items()})
    for connection in tables.values():
        connection.close()
    sizes = {name: (folder / f"{name}.db").stat().st_size for name in tables}
    show("bytes a message", {n: f"{size / (total + 250_000):,.0f}" for n, size in sizes.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure which key the log should have.")
    parser.add_argument("messages", nargs="?", type=int, default=1_000_000)
    with tempfile.TemporaryDirectory() as temporary:
        main(parser.parse_args().messages, Path(temporary))
