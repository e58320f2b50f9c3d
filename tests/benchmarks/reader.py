"""A reader of the worker's file that records when it sees each message, in its own process.

    python -m tests.benchmarks.reader DATABASE FILE SEEN

Checks twice a millisecond whether anything was committed; if so, it looks up the next messages of
the file, in order, by the log's key. Writes the times as doubles, on the clock that all processes
share.
"""

import argparse
import json
import sqlite3
import time
from array import array
from pathlib import Path

from tests.benchmarks import traffic
from tests.waiting import patience

LOOK_SECONDS = 0.0005
IS_THERE = "SELECT 1 FROM messages WHERE event_id = ? AND id = ?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("database", "file", "seen"):
        parser.add_argument(name, type=Path)
    told = parser.parse_args()
    documents = (json.loads(body) for _, body in traffic.read(told.file))
    keys = [(document["payload"]["event_id"], document["id"]) for document in documents]
    connection = sqlite3.connect(
        f"{told.database.as_uri()}?mode=ro", uri=True, isolation_level=None
    )
    print(json.dumps({"keys": len(keys)}), flush=True)
    seen = watch(connection, keys)
    connection.close()
    with told.seen.open("wb") as file:
        seen.tofile(file)


def watch(connection: sqlite3.Connection, keys: list[tuple[str, str]]) -> "array[float]":
    """Return the time at which each was first seen; fewer if no more arrive."""
    seen = array("d")
    version = 0
    progressed, limit = time.monotonic(), patience()
    while len(seen) < len(keys) and time.monotonic() - progressed < limit:
        (found,) = connection.execute("PRAGMA data_version").fetchone()
        if found == version:
            time.sleep(LOOK_SECONDS)  # noqa: TID251 - SQLite does not notify other processes of a commit
            continue
        version = found
        # One snapshot for all of them.
        connection.execute("BEGIN")
        place = len(seen)
        while place < len(keys) and connection.execute(IS_THERE, keys[place]).fetchone():
            place += 1
        connection.execute("COMMIT")
        progressed = time.monotonic()
        seen.extend([progressed] * (place - len(seen)))
    return seen


if __name__ == "__main__":
    main()
