"""Brings the log of one database into another, and with it all rows.

The theorem makes it simple: whatever the target has already, in whatever order the rest comes, and
whoever writes meanwhile, its rows are the fold of all messages. So the source's messages are
projected like those of a queue, and an import that was interrupted is begun again.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from worker.deliveries import Delivery, Outcome, Verdict
from worker.errors import StoreUnusable
from worker.messages import receive
from worker.projector import Projector
from worker.rebuild import (
    create_tables,
    reason_to_rebuild,
    require_known_kinds,
    require_same_columns,
)
from worker.registry import Registry
from worker.store.database import Database, Writer
from worker.store.log import Logged
from worker.store.presence import missing_of

# As a worker's batch; beyond that, a larger one gains little.
BATCH_MESSAGES = 1_000
LISTED = 100

Progress = Callable[[int, int], None]
"""Called with the messages read so far, and all there are."""


@dataclass(slots=True)
class Account:
    """What an import did."""

    messages: int
    """In the source when the import began."""
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    rejections: list[Outcome] = field(default_factory=list)
    """The first of them."""

    @property
    def rejected(self) -> int:
        """How many messages the target does not take."""
        return self.verdicts[Verdict.REJECTED]

    @property
    def known(self) -> int:
        """How many messages the target had already."""
        return self.verdicts[Verdict.DUPLICATE]

    @property
    def added(self) -> int:
        """How many messages the target has now and had not before."""
        return self.verdicts.total() - self.rejected - self.known

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Count outcomes, and keep the first rejections."""
        self.verdicts.update(outcome.verdict for outcome in outcomes)
        rejected = (each for each in outcomes if each.rejected is not None)
        self.rejections += [*rejected][: LISTED - len(self.rejections)]


async def prepare(target: Writer, registry: Registry) -> None:
    """Create the tables of a new target; raise `StoreUnusable` for one that must be rebuilt."""
    await target.require_log()
    await require_known_kinds(target, registry)
    reason = reason_to_rebuild(await target.noted_versions(), registry)
    if reason is None:
        await require_same_columns(target, registry)
    elif await target.is_log_empty():
        await create_tables(target, registry)
    else:
        raise StoreUnusable(
            f"The target must be rebuilt first: {reason} ({target.named}).",
            "run 'projection-worker rebuild', or start its worker, which does it.",
        )


async def import_log(
    source: Database, target: Writer, registry: Registry, progress: Progress
) -> Account:
    """Bring all messages of the source into a target that is prepared, and return the account.

    Then verifies that the target has every message of the source that it does not reject, and
    brings those that came meanwhile. Raises `StoreUnusable` if one is missing after that, and
    whatever reading and writing raise: what was committed until then stays.
    """
    account = Account(await source.messages())
    projector = Projector(registry, target)
    async for batch in _batches(source):
        account.count(await _project(projector, registry, batch))
        progress(account.verdicts.total(), account.messages)
    await _verify(source, target, projector, registry, account)
    return account


async def _verify(
    source: Database, target: Writer, projector: Projector, registry: Registry, account: Account
) -> None:
    """Bring what the target lacks, but for what it rejects; raise `StoreUnusable` if that fails."""
    async for batch in _batches(source):
        by_key = {(each.event_id, each.id): each for each in batch}
        missing = await missing_of(target.fetch_all, [*by_key])
        if not missing:
            continue
        outcomes = await _project(projector, registry, [by_key[key] for key in missing])
        came = [each for each in outcomes if each.rejected is None]
        account.count(came)
        taken = [key for key, each in zip(missing, outcomes, strict=True) if not each.rejected]
        if lost := await missing_of(target.fetch_all, taken):
            event_id, message_id = lost[0]
            raise StoreUnusable(
                f"Message {message_id!r} of event {event_id!r}, and {len(lost) - 1} more, were "
                f"written and are not in the log ({target.named}).",
                "find out what removes messages from it, and run the import again.",
            )


async def _batches(source: Database) -> AsyncIterator[list[Logged]]:
    """Yield the messages of the source, stream by stream, each in the order of position."""
    batch: list[Logged] = []
    async for piece in source.entries():
        batch += piece
        while len(batch) >= BATCH_MESSAGES:
            yield batch[:BATCH_MESSAGES]
            batch = batch[BATCH_MESSAGES:]
    if batch:
        yield batch


async def _project(
    projector: Projector, registry: Registry, messages: Sequence[Logged]
) -> list[Outcome]:
    arrivals = []
    for each in messages:
        body = each.body.encode()
        # Each may be known, so the target is asked beforehand (`redelivered`).
        delivery = Delivery(body, redelivered=True, appended_at=each.appended_at)
        arrivals.append(receive(registry.wire, delivery, max_bytes=len(body)))
    outcomes = await projector.project(arrivals)
    # What could not be decoded is named by the log.
    return [
        outcome._replace(event_id=each.event_id, message_id=each.id)
        for outcome, each in zip(outcomes, messages, strict=True)
    ]
