"""What a message costs as the log grows: the trial behind the layout of the tables.

    .venv/bin/python -m tests.benchmarks.layouts [MESSAGES ...] [--batch N] [--checkpoint PAGES]

Three files receive the same batches in turn, so that noise on the machine affects all of them:
- event: the log clustered by (event_id, id), the head of each stream in a table, events by their
  id, and the status in the index of a chat's events
- rows: the same log, but events have a rowid, and the status is only in a partial index
- number: like rows, but streams have numbers, the log is clustered by (stream, id), and heads are
  remembered
Needs Linux (/proc/self/io), and 500 bytes of disk for each message in each file.
"""

import argparse
import heapq
import itertools
import json
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MEASURED, FILLED_AT_ONCE = 60_000, 50_000
CACHE_KIBIBYTES, FILLING_KIBIBYTES = 16 * 1024, 512 * 1024
CHATS, REMEMBERED, BODY = 10_000, 10_000, "x" * 209
# The share of an event's messages that follow the previous one within so many messages of the whole
# traffic. (A due message may have to wait for its turn, so the smallest distances are set
# smaller than they become.)
FOLLOWING = ((0.0, 1), (0.5, 2), (0.75, 125), (0.9, 2_014), (1.0, 40_000))
ENDS_FOR_GOOD = 0.34  # of those that complete, which makes 8.5 messages per event
NEXT = {
    "event_planned": "event_started",
    "event_started": "event_completed",
    "event_completed": "event_status_reverted",
    "event_status_reverted": "event_started",
}


class Message(NamedTuple):
    event_id: str
    id: str
    sequence: int
    occurred_at: str
    kind: str
    chat_id: str

    @property
    def entry(self) -> tuple[str | int, ...]:
        """The columns of the log after the stream."""
        return (*self[1:5], 0, self.occurred_at, BODY)


class Traffic:
    """Events in chats, with random ids and realistic distances between their messages."""

    def __init__(self, seed: int) -> None:
        self.sequence = 0
        self._random = random.Random(seed)
        self._chats = [self._identifier() for _ in range(CHATS)]
        # Each unfinished event: when its next message is due, and its state.
        self._due: list[tuple[int, int, str, str, str]] = []

    def batch(self, size: int) -> list[Message]:
        """Return the next messages."""
        return [self._message() for _ in range(size)]

    def _message(self) -> Message:
        self.sequence += 1
        if self._due and self._due[0][0] <= self.sequence:
            _, _, event_id, before, chat_id = heapq.heappop(self._due)
            kind = NEXT[before]
        else:
            event_id, kind = self._identifier(), "event_planned"
            chat_id = self._random.choice(self._chats)
        if kind != "event_completed" or self._random.random() > ENDS_FOR_GOOD:
            due = self.sequence + self._distance()
            heapq.heappush(self._due, (due, self.sequence, event_id, kind, chat_id))
        million, rest = divmod(self.sequence, 1_000_000)
        occurred_at = f"2026-04-27T10:{million:02}:00.{rest:06}Z"
        return Message(event_id, self._identifier(), self.sequence, occurred_at, kind, chat_id)

    def _identifier(self) -> str:
        digits = f"{self._random.getrandbits(128):032x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

    def _distance(self) -> int:
        share, steps = self._random.random(), itertools.pairwise(FOLLOWING)
        (low, nearest), (high, farthest) = next(step for step in steps if share <= step[1][0])
        return int(nearest * (farthest / nearest) ** ((share - low) / (high - low)))


ENTRY = "id TEXT, sequence INTEGER, occurred_at TEXT, kind TEXT, is_late, appended_at, body TEXT"
LOG_BY_EVENT = (
    f"CREATE TABLE log (event_id TEXT, {ENTRY}, PRIMARY KEY (event_id, id)) WITHOUT ROWID",
    "CREATE TABLE streams (event_id TEXT PRIMARY KEY, sequence, occurred_at, id) WITHOUT ROWID",
)
LOG_BY_NUMBER = (
    f"CREATE TABLE log (stream INTEGER, {ENTRY}, PRIMARY KEY (stream, id)) WITHOUT ROWID",
    "CREATE TABLE streams (number INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE)",
)
EVENTS = """
    CREATE TABLE events (event_id TEXT NOT NULL PRIMARY KEY, chat_id, kind, status, props_json,
                         planned_for, started_at, completed_at, created_at, updated_at)
"""
EVENTS_BY_ID = (
    f"{EVENTS} WITHOUT ROWID",
    "CREATE INDEX of_chat ON events (chat_id, status, created_at, event_id)",
)
ONGOING = "status IN ('planned', 'active')"
EVENTS_AS_PLANNED = (
    EVENTS,
    "CREATE INDEX of_chat ON events (chat_id, created_at)",
    f"CREATE INDEX ongoing_of_chat ON events (chat_id, created_at) WHERE {ONGOING}",
)
# {0} is the column that the log is clustered by.
KNOWN = """
    SELECT log.{0}, log.id, log.body FROM json_each(?) AS pair
    JOIN log ON log.{0} = pair.value ->> 0 AND log.id = pair.value ->> 1
"""
APPEND = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
HEADS = "SELECT streams.* FROM json_each(?) AS s JOIN streams ON streams.event_id = s.value"
ADVANCE = """
    INSERT INTO streams VALUES (?, ?, ?, ?) ON CONFLICT (event_id) DO UPDATE
    SET sequence = excluded.sequence, occurred_at = excluded.occurred_at, id = excluded.id
"""
FIND = """
    SELECT streams.event_id, streams.number, log.sequence, log.occurred_at, log.id
    FROM json_each(?) AS wanted
    JOIN streams ON streams.event_id = wanted.value
    JOIN log ON log.stream = streams.number AND log.id = (
        SELECT id FROM log WHERE stream = streams.number
        ORDER BY sequence DESC, occurred_at DESC, id DESC LIMIT 1
    )
"""
LAST_NUMBER = "SELECT coalesce(max(number), 0) FROM streams"
OPEN = "INSERT INTO streams VALUES (?, ?)"
# ?1 is the event, ?2 the time of the message, ?3 the chat.
UPDATE = "UPDATE events SET updated_at = ?2, status ="
STATEMENTS = {
    "event_planned": "INSERT INTO events (event_id, chat_id, kind, status, props_json, created_at, "
    "updated_at) VALUES (?1, ?3, 'scene', 'planned', '{}', ?2, ?2) ON CONFLICT DO NOTHING",
    "event_started": f"{UPDATE} 'active', started_at = ?2 WHERE event_id = ?1 AND {ONGOING}",
    "event_completed": f"{UPDATE} 'completed', completed_at = ?2 WHERE event_id = ?1 AND {ONGOING}",
    "event_status_reverted": f"{UPDATE} 'planned' WHERE event_id = ?1",
}
WITH_ROWS = "SELECT event_id FROM events WHERE event_id IN (SELECT value FROM json_each(?))"

Streams = dict[str, list[Message]]


class Event:
    """A database that uses event_id as the key everywhere."""

    log: Sequence[str] = LOG_BY_EVENT
    events: Sequence[str] = EVENTS_BY_ID

    def __init__(self, folder: Path) -> None:
        """Create the tables; remember no streams."""
        self.numbers: dict[str, int] = {}
        self.connection = sqlite3.connect(folder / type(self).__name__, isolation_level=None)
        for statement in ("PRAGMA journal_mode = WAL", *self.log, *self.events):
            self.connection.execute(statement)

    def fetch(self, sql: str, wanted: object) -> list[tuple[Any, ...]]:
        """Return the rows for a list that is passed as one parameter."""
        return self.connection.execute(sql, (json.dumps(wanted),)).fetchall()

    def write(self, batch: list[Message]) -> None:
        """Write a batch as the projector does."""
        streams: Streams = {}
        for message in batch:
            streams.setdefault(message.event_id, []).append(message)
        self.connection.execute("BEGIN IMMEDIATE")
        self.append(batch, streams)
        for statements in rounds(streams.values()):
            for sql, rows in statements.items():
                self.connection.executemany(sql, rows)
        self.fetch(WITH_ROWS, list(streams))
        self.connection.execute("COMMIT")

    def append(self, batch: list[Message], streams: Streams) -> None:
        """Look up what is known, append to the log, advance the heads."""
        self.fetch(HEADS, list(streams))
        self.fetch(KNOWN.format("event_id"), [message[:2] for message in batch])
        self.connection.executemany(APPEND, sorted((m.event_id, *m.entry) for m in batch))
        heads = sorted((m[-1][0], m[-1][2], m[-1][3], m[-1][1]) for m in streams.values())
        self.connection.executemany(ADVANCE, heads)


class Rows(Event):
    """The same log, and events in the order of planning."""

    events = EVENTS_AS_PLANNED


class Number(Rows):
    """Streams with numbers and remembered heads."""

    log = LOG_BY_NUMBER

    def append(self, batch: list[Message], streams: Streams) -> None:
        """Add new streams, look up what is known, append to the log."""
        numbers = {e: self.numbers.pop(e) for e in streams if e in self.numbers}
        found = self.fetch(FIND, [e for e in streams if e not in numbers])
        numbers |= {event_id: number for event_id, number, *_ in found}
        ((last,),) = self.connection.execute(LAST_NUMBER)
        new = list(enumerate((e for e in streams if e not in numbers), last + 1))
        self.connection.executemany(OPEN, new)
        numbers |= {event_id: number for number, event_id in new}
        self.fetch(KNOWN.format("stream"), [(numbers[m.event_id], m.id) for m in batch])
        self.connection.executemany(APPEND, sorted((numbers[m.event_id], *m.entry) for m in batch))
        self.numbers |= numbers
        while len(self.numbers) > REMEMBERED:
            del self.numbers[next(iter(self.numbers))]


def rounds(streams: Iterable[list[Message]]) -> list[dict[str, list[tuple[str, ...]]]]:
    """Return the events' statements grouped by SQL: the n-th of each stream in round n."""
    found: list[dict[str, list[tuple[str, ...]]]] = []
    for stream in streams:
        for place, message in enumerate(stream):
            if place == len(found):
                found.append({})
            row = (message.event_id, message.occurred_at, message.chat_id)
            used = row if message.kind == "event_planned" else row[:2]
            found[place].setdefault(STATEMENTS[message.kind], []).append(used)
    return found


def spent() -> list[float]:
    """Return what this process has used: CPU and wall time in microseconds, and kB written."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return [time.process_time() * 1e6, time.perf_counter() * 1e6, int(counts["wchar"]) / 1e3]


class Trial:
    """The files of all layouts, and their traffic."""

    def __init__(self, folder: Path, checkpoint: int) -> None:
        """Begin with empty files; a checkpoint runs at this many pages in the WAL."""
        self._traffic = Traffic(seed=1)
        self._checkpoint = checkpoint
        self._files = [kind(folder) for kind in (Event, Rows, Number)]

    def fill(self, messages: int) -> None:
        """Fill the logs up to a size, without regard for safety."""
        self._set("OFF", FILLING_KIBIBYTES, 100_000)
        while (missing := messages - self._traffic.sequence) > 0:
            batch = self._traffic.batch(min(FILLED_AT_ONCE, missing))
            for file in self._files:
                file.write(batch)
        for file in self._files:
            file.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def measure(self, size: int) -> dict[str, list[float]]:
        """Write batches of a size as the worker would; return the cost per message."""
        self._set("FULL", CACHE_KIBIBYTES, self._checkpoint)
        costs: dict[str, list[list[float]]] = {type(file).__name__: [] for file in self._files}
        for _ in range(MEASURED // size):
            batch = self._traffic.batch(size)
            for file in self._files:
                before = spent()
                file.write(batch)
                cost = [(b - a) / size for a, b in zip(before, spent(), strict=True)]
                costs[type(file).__name__].append(cost)
        return {
            n: [statistics.fmean(each) for each in zip(*c, strict=True)] for n, c in costs.items()
        }

    def _set(self, synchronous: str, cache_kibibytes: int, checkpoint: int) -> None:
        for file in self._files:
            file.connection.executescript(
                f"PRAGMA synchronous = {synchronous}; PRAGMA cache_size = -{cache_kibibytes}; "
                f"PRAGMA wal_autocheckpoint = {checkpoint}"
            )


def main(sizes: Sequence[int], batch: int, checkpoint: int, folder: Path) -> None:
    trial = Trial(folder, checkpoint)
    print(f"{'messages':>10}  {'layout':8}{'CPU us':>8}{'wall us':>9}{'kB':>7}  CPU / the first")
    first: dict[str, float] = {}
    for size in sorted(sizes):
        trial.fill(size)
        for name, (cpu, wall, written) in trial.measure(batch).items():
            growth = cpu / first.setdefault(name, cpu)
            figures = f"{cpu:8.1f}{wall:9.1f}{written:7.1f}{growth:17.2f}"
            print(f"{size:10,}  {name:8}{figures}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure what a message costs as the log grows.")
    parser.add_argument("sizes", nargs="*", type=int, default=[0, 1_000_000, 5_000_000])
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--checkpoint", type=int, default=1_000, help="pages in the WAL")
    with tempfile.TemporaryDirectory() as temporary:
        main(folder=Path(temporary), **vars(parser.parse_args()))
