"""The disk's limit: the same log and the same rows, written with nothing but sqlite3.

There is no broker, no JSON and no asyncio: the data has been folded and sorted before the clock
starts, and only the INSERTs and COMMITs are timed. Batches are as large as the worker's, each one
transaction, in WAL mode with synchronous=FULL, with the worker's own schema and with checkpoints as
rare as the worker's in a backlog. It looks nothing up, because it knows that there are no
duplicates and no late messages. Each row is written once per batch.
"""

import asyncio
from pathlib import Path

from tests.benchmarks.contenders.timing import Arguments, Clock, arguments
from tests.benchmarks.database import Fold, connect, create, write
from tests.benchmarks.traffic import Traffic


def main(told: Arguments) -> None:
    database = Path(told.database)
    asyncio.run(create(database))
    batches = list(Fold().batches(Traffic().take(told.messages)))
    connection = connect(database)
    clock = Clock(told.messages)
    clock.begin()
    write(connection, batches)
    clock.done(told.messages)
    connection.close()


if __name__ == "__main__":
    main(arguments())
