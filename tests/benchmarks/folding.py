"""One projector with what arrives in one order: `python -m tests.benchmarks.folding CASE N FILE`.

Prints a line of JSON. It uses no broker, so that only decoding and projecting are measured.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests import database
from tests.benchmarks.database import BATCH
from tests.benchmarks.traffic import Sent, Traffic
from tests.oracle import expected_rows
from worker.deliveries import Delivery
from worker.messages import receive
from worker.projections import load
from worker.projector import Projector
from worker.rebuild import create_tables
from worker.store.sqlite.lock import WriterLock
from worker.store.sqlite.store import Writer

CAP = 1024 * 1024
TICK_SECONDS = 0.002
KINDS = ("event_started", "event_completed", "event_status_reverted")
PAYLOADS = (
    '"started_at":"2026-01-01T00:00:00.000Z"',
    '"completed_at":"2026-01-01T00:00:00.000Z"',
    '"prior_status":"planned"',
)


def in_order(messages: int) -> tuple[list[Sent], list[Sent]]:
    """Return the mix of the other benchmarks, without anything before it."""
    return [], Traffic().take(messages)


def shuffled(messages: int) -> tuple[list[Sent], list[Sent]]:
    """Return the same messages, with those of each event in random order."""
    sent = Traffic().take(messages)
    chosen = random.Random(1)
    streams: dict[str, list[Sent]] = {}
    for each in sent:
        streams.setdefault(each.event_id, []).append(each)
    for stream in streams.values():
        chosen.shuffle(stream)
    return [], [streams[each.event_id].pop() for each in sent]


def one_stream(messages: int) -> tuple[list[Sent], list[Sent]]:
    """Return the messages of one event, in order."""
    return [], _stream(messages)


def wrong_clock(messages: int) -> tuple[list[Sent], list[Sent]]:
    """Return the same messages after one whose publisher's clock was wrong."""
    return [_of_one(messages + 1, 2**40)], _stream(messages)


def one_late(messages: int) -> tuple[list[Sent], list[Sent]]:
    """Return one message that sorts before all others of a long stream."""
    return _stream(messages), [_of_one(messages + 1, 0)]


CASES: dict[str, Callable[[int], tuple[list[Sent], list[Sent]]]] = {
    each.__name__: each for each in (in_order, shuffled, one_stream, wrong_clock, one_late)
}


def _stream(messages: int) -> list[Sent]:
    planned = next(each for each in Traffic().take(1))
    body = json.loads(planned.body) | {"sequence": 1}
    body["payload"]["event_id"] = "e-1"
    first = planned._replace(event_id="e-1", sequence=1, body=json.dumps(body))
    return [first, *(_of_one(number, number) for number in range(2, messages + 1))]


def _of_one(number: int, sequence: int) -> Sent:
    kind, message_id = KINDS[number % 3], f"00000000-0000-4000-8000-{number:012}"
    at = "2026-01-01T00:00:00.000Z"
    body = (
        f'{{"id":"{message_id}","kind":"{kind}","occurred_at":"{at}","sequence":{sequence},'
        f'"payload":{{"event_id":"e-1",{PAYLOADS[number % 3]}}}}}'
    )
    return Sent("e-1", message_id, sequence, at, kind, "chat", body)


async def measure(case: str, messages: int, file: Path) -> dict[str, float]:
    """Project, check the rows against the oracle, and return the costs."""
    before, sent = CASES[case](messages)
    registry = load()

    async def project(projector: Projector, some: Sequence[Sent]) -> None:
        for start in range(0, len(some), BATCH):
            batch = (each.body.encode() for each in some[start : start + BATCH])
            arrivals = [receive(registry.wire, Delivery(body), CAP) for body in batch]
            await projector.project(arrivals)

    with WriterLock(file) as lock:
        async with Writer(file, lock) as writer:
            await create_tables(writer, registry)
            projector = Projector(registry, writer)
            await project(projector, before)
            async with _ticking() as gaps:
                began_at = time.monotonic()
                await project(projector, sent)
                seconds = time.monotonic() - began_at
    expected = expected_rows(each.document for each in [*before, *sent])
    assert database.rows(file) == expected, f"{case}: other rows than the oracle's"
    return {"messages": len(sent), "seconds": seconds, "longest_turn_seconds": max(gaps)}


@asynccontextmanager
async def _ticking() -> AsyncIterator[list[float]]:
    """Measure the longest turn of the event loop."""
    gaps = [0.0]

    async def tick() -> None:
        while True:
            began_at = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)  # noqa: TID251 - how late it ends is measured
            gaps.append(time.monotonic() - began_at - TICK_SECONDS)

    task = asyncio.ensure_future(tick())
    try:
        yield gaps
    finally:
        task.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("messages", type=int)
    parser.add_argument("file", type=Path)
    told = parser.parse_args()
    print(json.dumps(asyncio.run(measure(told.case, told.messages, told.file))))


if __name__ == "__main__":
    main()
