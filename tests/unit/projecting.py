"""A projector on a real database, and reads of it without the worker's code."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from tests import places
from tests.builders import Message, body
from tests.places import Place
from worker.deliveries import Delivery, Outcome
from worker.messages import Arrival, now, receive
from worker.projections import load
from worker.projector import Projector
from worker.rebuild import Audit, audit, create_tables
from worker.registry import Registry
from worker.store.database import Writer
from worker.store.engines import store_of

CAP = 64 * 1024
EVENTS = "SELECT * FROM events ORDER BY event_id"
LOG = "SELECT event_id, id FROM messages ORDER BY event_id, id"


@cache
def shipped() -> Registry:
    """Return the registry of the worker's own projections, loaded once."""
    return load()


@asynccontextmanager
async def projecting(
    place: Place, registry: Registry | None = None, clock: Callable[[], str] = now
) -> AsyncIterator[Projector]:
    """Lock and open the database and create its tables, as the service does."""
    store = store_of(place)
    with store.lock() as lock:
        async with projecting_with(store.writer(lock), registry, clock) as projector:
            yield projector


@asynccontextmanager
async def projecting_with(
    opened: Writer, registry: Registry | None = None, clock: Callable[[], str] = now
) -> AsyncIterator[Projector]:
    """Open a writer, with or without a lock, and project with it."""
    registry = registry or shipped()
    async with opened as writer:
        if not await writer.noted_versions():
            await create_tables(writer, registry)
        yield Projector(registry, writer, clock=clock)


def arrivals(
    bodies: Sequence[bytes | Message], registry: Registry | None = None, *, again: bool = False
) -> list[Arrival]:
    """Return messages, or raw bytes, as arrivals; `again` marks them as redelivered."""
    wire = (registry or shipped()).wire
    raw = [each if isinstance(each, bytes) else body(each) for each in bodies]
    return [
        receive(wire, Delivery(each, tag=tag, redelivered=again), CAP)
        for tag, each in enumerate(raw, 1)
    ]


async def project(
    place: Place,
    *batches: Sequence[bytes | Message],
    registry: Registry | None = None,
    again: bool = False,
) -> list[Outcome]:
    """Project some batches and return the outcomes of all their deliveries."""
    async with projecting(place, registry) as projector:
        return [
            outcome
            for batch in batches
            for outcome in await projector.project(arrivals(batch, registry, again=again))
        ]


def verdicts(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the outcomes in the log's words."""
    return [o.rejected.reason.value if o.rejected else o.verdict.value for o in outcomes]


def rows(place: Place, sql: str = EVENTS) -> list[tuple[Any, ...]]:
    """Query the database."""
    return places.rows(place, sql)


async def audited(place: Place, registry: Registry | None = None) -> Audit:
    """Compare the rows with the log."""
    return await audit(
        store_of(place), registry or shipped(), lambda done, total: None, examples=10
    )
