"""The worker's own `rebuild` of a file with its log and its rows.

Timed from the open file to the new rows in place. The log has just been written, so it is read from
the page cache.
"""

import asyncio
from pathlib import Path

from tests.benchmarks.contenders.timing import Arguments, Clock, arguments
from tests.benchmarks.database import Fold, connect, create, write
from tests.benchmarks.traffic import Traffic
from worker.projections import load
from worker.rebuild import rebuild
from worker.store.sqlite.store import Writer


async def main(told: Arguments) -> None:
    database = Path(told.database)
    await create(database)
    connection = connect(database, synchronous="OFF")
    write(connection, Fold().batches(Traffic().take(told.messages)))
    connection.close()
    registry = load()
    clock = Clock(told.messages)
    async with Writer(database) as writer:
        clock.begin()
        audit = await rebuild(writer, registry, lambda done, total: None)
        clock.done(audit.messages)
    assert audit.differing == 0, audit


if __name__ == "__main__":
    asyncio.run(main(arguments()))
