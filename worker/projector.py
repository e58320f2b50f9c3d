"""One batch of deliveries -> one transaction -> one outcome for each delivery.

Needs no broker: takes deliveries, gives outcomes. Promises: when `project` returns, the effect of
every outcome but a rejection is on the disk; when it raises, nothing is. A message that fails is
found by itself, and its neighbours commit.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from worker.deliveries import Delivery, Outcome, Reason, Rejected, Verdict
from worker.errors import StoreUnavailable
from worker.fold import Position, fold, is_late, position
from worker.messages import AnyMessage, decode, now, same_content
from worker.registry import Registry
from worker.store import log, tables
from worker.store.connection import Writer
from worker.store.transaction import Transaction

# A handler sees only the message and the database, so one that failed will fail again, but for
# what nobody can rule out in foreign code. Three tries cost little, as they are rare.
HANDLER_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A delivery that holds a message."""

    delivery: Delivery
    message: AnyMessage
    body: str

    @property
    def key(self) -> tuple[str, str]:
        return (self.message.event_id, self.message.id)

    def outcome(self, verdict: Verdict, rejected: Rejected | None = None) -> Outcome:
        event_id, message_id = self.key
        return Outcome(self.delivery, verdict, rejected, self.message.kind, event_id, message_id)


@dataclass(slots=True)
class _Stream:
    """What a batch brings to one stream."""

    stored_head: Position | None
    head: Position | None
    accepted: list[AnyMessage] = field(default_factory=list)

    def accept(self, message: AnyMessage) -> bool:
        """Take a new message; tell whether one that comes after it arrived before it."""
        was_late = is_late(message, self.head)
        if not was_late:
            self.head = position(message)
        self.accepted.append(message)
        return was_late

    @property
    def must_fold_anew(self) -> bool:
        # What came in the wrong order within the batch is sorted before it is applied.
        return any(is_late(message, self.stored_head) for message in self.accepted)


class _HandlerFailed(Exception):
    """A handler raised, or one of its statements did."""


class Projector:
    """The machine that applies batches. Belongs to one task."""

    def __init__(
        self,
        registry: Registry,
        writer: Writer,
        *,
        max_message_bytes: int,
        clock: Callable[[], str] = now,
    ) -> None:
        """Project by the handlers of a registry into the writer's file."""
        self._registry = registry
        self._writer = writer
        self._max_message_bytes = max_message_bytes
        self._clock = clock

    async def project(self, batch: Sequence[Delivery]) -> list[Outcome]:
        """Decide every delivery, in order, and commit.

        Raises `StoreUnavailable` if the database cannot commit now: nothing has happened then, and
        the same batch may be tried again.
        """
        decoded = [self._decode(delivery) for delivery in batch]
        arrivals = [each for each in decoded if isinstance(each, _Arrival)]
        decided = iter(await self._commit(arrivals) if arrivals else [])
        return [next(decided) if isinstance(each, _Arrival) else each for each in decoded]

    def _decode(self, delivery: Delivery) -> _Arrival | Outcome:
        message = decode(self._registry.wire, delivery, self._max_message_bytes)
        if isinstance(message, Rejected):
            return Outcome(delivery, Verdict.REJECTED, message)
        return _Arrival(delivery, message, delivery.body.decode())

    async def _commit(self, arrivals: Sequence[_Arrival]) -> list[Outcome]:
        try:
            async with self._writer.transaction() as tx:
                return await self._write(tx, arrivals)
        except _HandlerFailed:
            async with self._writer.transaction() as tx:
                return [await self._write_alone(tx, arrival) for arrival in arrivals]

    async def _write_alone(self, tx: Transaction, arrival: _Arrival) -> Outcome:
        """Write one message so that its failure undoes nothing but itself."""
        for _ in range(HANDLER_ATTEMPTS):
            try:
                async with tx.savepoint():
                    (outcome,) = await self._write(tx, [arrival])
                    return outcome
            except _HandlerFailed as failure:
                cause = failure.__cause__
        detail = (
            f"The handler of {arrival.message.kind!r} failed {HANDLER_ATTEMPTS} times: "
            f"{type(cause).__name__}: {cause}"
        )
        return arrival.outcome(Verdict.REJECTED, Rejected(Reason.HANDLER_FAILED, detail))

    async def _write(self, tx: Transaction, arrivals: Sequence[_Arrival]) -> list[Outcome]:
        streams = await self._streams(tx, arrivals)
        outcomes = await self._accept(tx, arrivals, streams)
        await log.advance(tx, {e: s.head for e, s in streams.items() if s.head != s.stored_head})
        await self._apply(tx, streams)
        return await self._mark_orphans(tx, outcomes)

    async def _streams(self, tx: Transaction, arrivals: Iterable[_Arrival]) -> dict[str, _Stream]:
        event_ids = {arrival.message.event_id for arrival in arrivals}
        heads = await log.heads(tx, event_ids)
        return {e: _Stream(heads.get(e), heads.get(e)) for e in event_ids}

    async def _accept(
        self, tx: Transaction, arrivals: Sequence[_Arrival], streams: dict[str, _Stream]
    ) -> list[Outcome]:
        """Append what is new to the log, in the order of arrival; tell duplicates and conflicts."""
        known = await log.known(tx, [arrival.key for arrival in arrivals])
        appended_at = self._clock()
        outcomes: list[Outcome] = []
        entries: list[log.Entry] = []
        for arrival in arrivals:
            message = arrival.message
            if arrival.key in known:
                outcomes.append(_judge_again(arrival, known[arrival.key]))
                continue
            known[arrival.key] = arrival.body
            was_late = streams[message.event_id].accept(message)
            outcomes.append(arrival.outcome(Verdict.LATE if was_late else Verdict.APPLIED))
            entries.append(
                log.Entry(
                    *arrival.key,
                    message.sequence,
                    message.occurred_at,
                    message.kind,
                    was_late,
                    appended_at,
                    arrival.body,
                )
            )
        await log.append(tx, entries)
        return outcomes

    async def _apply(self, tx: Transaction, streams: dict[str, _Stream]) -> None:
        """Bring the rows of the streams up to their logs."""
        anew = [event_id for event_id, stream in streams.items() if stream.must_fold_anew]
        bodies = await log.bodies(tx, anew)
        try:
            for event_id, stream in streams.items():
                if event_id in bodies:
                    whole = map(self._registry.wire.validate_json, bodies[event_id])
                    await fold(self._registry, tx, event_id, whole, anew=True)
                else:
                    await fold(self._registry, tx, event_id, stream.accepted)
            await tx.flush()
        except StoreUnavailable:
            raise
        except Exception as error:
            raise _HandlerFailed from error

    async def _mark_orphans(self, tx: Transaction, outcomes: list[Outcome]) -> list[Outcome]:
        applied = (Verdict.APPLIED, Verdict.LATE)
        event_ids = {o.event_id for o in outcomes if o.verdict in applied and o.event_id}
        with_rows = await tables.with_rows(tx, self._registry.versions, event_ids)
        orphans = event_ids - with_rows
        return [
            outcome._replace(verdict=Verdict.ORPHAN)
            if outcome.verdict in applied and outcome.event_id in orphans
            else outcome
            for outcome in outcomes
        ]


def _judge_again(arrival: _Arrival, first: str) -> Outcome:
    """Decide a message whose id is known: the first of two contents counts."""
    if same_content(first, arrival.body):
        return arrival.outcome(Verdict.DUPLICATE)
    event_id, message_id = arrival.key
    detail = (
        f"The id {message_id!r} of event {event_id!r} is taken by another message, which arrived "
        f"first and counts. Publishers choose a new id for each message."
    )
    return arrival.outcome(Verdict.REJECTED, Rejected(Reason.ID_CONFLICT, detail))
