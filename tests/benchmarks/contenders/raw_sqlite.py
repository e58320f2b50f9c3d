"""The disk's ceiling: the same log and the same rows, written with nothing but sqlite3.

No broker, no JSON, no asyncio: what is to be written has been folded and sorted before the clock
begins, and only the INSERTs and COMMITs are timed. Batches as large as the worker's, each one
transaction, in WAL mode with synchronous=FULL, through the worker's own schema and with a
checkpoint as seldom as the worker's in a backlog. It looks nothing up: it knows that there are no
duplicates and that nothing is late. Each row is written once for a batch.
"""

import asyncio

from tests.benchmarks.contenders.timing import Arguments, Clock, arguments
from tests.benchmarks.database import Fold, connect, create, write
from tests.benchmarks.traffic import Traffic


def main(told: Arguments) -> None:
    asyncio.run(create(told.database))
    batches = list(Fold().batches(Traffic().take(told.messages)))
    connection = connect(told.database)
    clock = Clock(told.messages)
    clock.begin()
    write(connection, batches)
    clock.done(told.messages)
    connection.close()


if __name__ == "__main__":
    main(arguments())
