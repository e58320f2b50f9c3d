"""How long partitions wait for their next worker after one was killed, has stopped, or has joined.

Two workers, and a publisher at an even rate. The time is the longest that any message waited from
the moment at which it was due to be published until a worker took it into a transaction. So it is
what a reader notices, and it contains what the broker and the next worker need.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from tests.benchmarks import traffic
from tests.benchmarks.bench import Bench, Result
from tests.benchmarks.on_postgres import PARTITIONS
from tests.benchmarks.postgres import ROWS, SCHEMA, private_postgres
from tests.benchmarks.running import MeasuredWorker, running_worker
from tests.benchmarks.traffic import Sent, Traffic
from tests.oracle import expected_rows
from tests.postgres import PostgresDatabase

QUEUE = "benchmark.takeover"
RATE = 500.0
# Longer than a takeover takes, so that no event meets the one before.
APART_SECONDS = 5.0
KILLED, JOINED, STOPPED = "kill -9", "join", "SIGTERM"
STORY = (KILLED, JOINED, STOPPED, JOINED)
LOG = f"SELECT id, appended_at FROM {SCHEMA}.log"
LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a worker."""

    what: str
    moment: float
    """On the monotonic clock; of a join, when its process began to start."""
    first_message: float | None = None
    """Of a join: how many seconds later it had committed a message; None if it got none in time."""


async def takeover(bench: Bench, *, rounds: int, apart: float = APART_SECONDS) -> Result:
    """Kill, start, stop and start one of two workers, so many seconds apart."""
    story = STORY * rounds
    sent = Traffic().take(round(RATE * apart * (len(story) + 2)))
    traffic.write(bench.folder / "messages", sent)
    await bench.broker.declare([QUEUE], PARTITIONS)
    async with private_postgres() as postgres, postgres.database() as database:
        events, began = await _live(bench, database, story, apart)
        waits = await _waits(database, sent, began)
        assert await database.query(ROWS) == expected_rows(message.document for message in sent)
    await bench.broker.delete([QUEUE], PARTITIONS)
    longest = {
        what: [_longest(waits, event.moment, apart) for event in events if event.what == what]
        for what in (KILLED, STOPPED, JOINED)
    }
    bench.say("; ".join(f"  {what}: {median(each):.2f} s" for what, each in longest.items()))
    return {
        "rounds": rounds,
        "rate": RATE,
        "usual_seconds": median(seconds for _, seconds in waits),
        "longest_seconds": longest,
        "joined_seconds": [event.first_message for event in events if event.what == JOINED],
    }


def _longest(waits: Sequence[tuple[float, float]], moment: float, apart: float) -> float:
    """Return the longest wait of the messages that were due around a moment, up to the next one."""
    return max(wait for due, wait in waits if -1 <= due - moment < apart - 1)


async def _live(
    bench: Bench, database: PostgresDatabase, story: Sequence[str], apart: float
) -> tuple[list[Event], float]:
    """Let the story happen; return its events, and when the publisher began."""
    events = []
    async with AsyncExitStack() as stack:

        async def start(ordinal: int) -> MeasuredWorker:
            told = (bench.broker, QUEUE, database.url)
            return await stack.enter_async_context(running_worker(*told, ordinal=ordinal))

        workers = dict(enumerate(await asyncio.gather(start(0), start(1))))
        await bench.broker.until_spread(QUEUE, PARTITIONS, len(workers))
        publishing = await stack.enter_async_context(
            bench.broker.publishing(bench.folder / "messages", RATE)
        )
        began = await publishing.began()
        for number, what in enumerate(story, 1):
            moment = await _until(began + apart * number)
            first_message = None
            if what == JOINED:
                (missing,) = {0, 1} - workers.keys()
                workers[missing] = await start(missing)
                taken = await _first_message(workers[missing], moment + apart)
                first_message = None if taken is None else taken - moment
            else:
                # The one that has been there for longer, and so has partitions on any broker.
                leaving = workers.pop(next(iter(workers)))
                await (leaving.kill() if what == KILLED else leaving.stop())
            events.append(Event(what, moment, first_message))
        await publishing.ended()
        await bench.broker.until_empty(QUEUE)
        for worker in workers.values():
            await worker.stop()
    return events, began


async def _first_message(worker: MeasuredWorker, deadline: float) -> float | None:
    """Return when it had a message, unless that takes until the next event."""
    while (now := time.monotonic()) < deadline - 0.5:
        if await worker.settled():
            return now
        await asyncio.sleep(LOOK_SECONDS)  # noqa: TID251 - another process gives no event
    return None


async def _waits(
    database: PostgresDatabase, sent: Sequence[Sent], began: float
) -> list[tuple[float, float]]:
    """Return when each message was due, and how long it then waited until it was appended."""
    ahead = time.time() - time.monotonic()
    appended_at = dict(await database.query(LOG))
    waits = []
    for place, message in enumerate(sent):
        due = began + place / RATE
        appended = datetime.fromisoformat(appended_at[message.id]).timestamp() - ahead
        waits.append((due, appended - due))
    return waits


async def _until(moment: float) -> float:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))  # noqa: TID251 - a timed story
    return time.monotonic()
