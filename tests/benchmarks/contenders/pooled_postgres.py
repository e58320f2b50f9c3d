"""The consumer of `handwritten_postgres.py` with sixteen connections that commit at the same time.

Messages of one event take turns, which such an application needs and rarely has. With 4 or 32
connections it is no faster. It shows what a commit per message costs at least.
"""

import asyncio

from tests.benchmarks.contenders.handwritten_postgres import main
from tests.benchmarks.contenders.timing import arguments

CONNECTIONS = 16

if __name__ == "__main__":
    asyncio.run(main(arguments(), CONNECTIONS))
