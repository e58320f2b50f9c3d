"""One batch of deliveries -> one transaction -> one outcome for each delivery.

Needs no broker: takes deliveries, gives outcomes. Promises: when `project` returns, the effect of
every outcome but a rejection is on the disk; when it raises, nothing is. A message that fails is
found by itself, and its neighbours commit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from worker.deliveries import Outcome, Reason, Rejected, Verdict
from worker.errors import StoreUnavailable
from worker.fold import fold, is_late, position
from worker.messages import AnyMessage, Arrival, now, same_content
from worker.registry import Registry
from worker.store import log, tables
from worker.store.connection import Writer
from worker.store.streams import Position, Stream, Streams
from worker.store.transaction import Transaction

# A handler sees only the message and the database, so one that failed will fail again, but for
# what nobody can rule out in foreign code. Three tries cost little, as they are rare.
HANDLER_ATTEMPTS = 3
# So many arrive together only where a backlog is worked off.
BACKLOG_MESSAGES = 800

_Message = tuple[Arrival, AnyMessage, str]
"""An arrival that holds a message, that message, and its event."""


@dataclass(slots=True)
class _Addition:
    """What a batch brings to one stream."""

    stream: Stream
    head: Position | None
    accepted: list[AnyMessage] = field(default_factory=list)
    must_fold_anew: bool = False

    def accept(self, message: AnyMessage) -> bool:
        """Take a new message; tell whether one that comes after it arrived before it."""
        self.accepted.append(message)
        place = position(message)
        if not is_late(place, self.head):
            self.head = place
            return False
        # What came in the wrong order within the batch is sorted before it is applied.
        self.must_fold_anew = self.must_fold_anew or is_late(place, self.stream.head)
        return True


class _HandlerFailed(Exception):
    """A handler raised, or one of its statements did."""


class Projector:
    """The machine that applies batches. Belongs to one task."""

    def __init__(
        self, registry: Registry, writer: Writer, *, clock: Callable[[], str] = now
    ) -> None:
        """Project by the handlers of a registry into the writer's file."""
        self._registry = registry
        self._writer = writer
        self._clock = clock
        self._streams = Streams()

    async def project(self, batch: Sequence[Arrival]) -> list[Outcome]:
        """Decide every delivery, in order, and commit.

        Raises `StoreUnavailable` if the database cannot commit now: nothing has happened then, and
        the same batch may be tried again.
        """
        messages = [
            (arrival, arrival.content, arrival.content.event_id)
            for arrival in batch
            if not isinstance(arrival.content, Rejected)
        ]
        decided = iter(await self._commit(messages) if messages else [])
        return [
            Outcome(arrival.delivery, Verdict.REJECTED, arrival.content)
            if isinstance(arrival.content, Rejected)
            else next(decided)
            for arrival in batch
        ]

    async def _commit(self, messages: Sequence[_Message]) -> list[Outcome]:
        # What is remembered is dropped with a transaction that fails.
        streams, self._streams = self._streams, Streams()
        in_bulk = len(messages) >= BACKLOG_MESSAGES
        try:
            async with self._writer.transaction(in_bulk=in_bulk) as tx:
                outcomes = await self._write(tx, messages, streams)
        except _HandlerFailed:
            streams = Streams()
            async with self._writer.transaction() as tx:
                outcomes = [await self._write_alone(tx, each, streams) for each in messages]
        self._streams = streams
        return outcomes

    async def _write_alone(self, tx: Transaction, alone: _Message, streams: Streams) -> Outcome:
        """Write one message so that its failure undoes nothing but itself."""
        for _ in range(HANDLER_ATTEMPTS):
            try:
                async with tx.savepoint():
                    (outcome,) = await self._write(tx, [alone], streams)
                    return outcome
            except _HandlerFailed as failure:
                cause = failure.__cause__
        arrival, message, event_id = alone
        detail = (
            f"The handler of {message.kind!r} failed {HANDLER_ATTEMPTS} times: "
            f"{type(cause).__name__}: {cause}"
        )
        rejected = Rejected(Reason.HANDLER_FAILED, detail)
        return _outcome(arrival, message, event_id, Verdict.REJECTED, rejected)

    async def _write(
        self, tx: Transaction, messages: Sequence[_Message], streams: Streams
    ) -> list[Outcome]:
        found = await streams.of(tx, dict.fromkeys(event_id for _, _, event_id in messages))
        additions = {event_id: _Addition(stream, stream.head) for event_id, stream in found.items()}
        outcomes = await self._accept(tx, messages, additions)
        await self._apply(tx, additions)
        outcomes = await self._mark_orphans(tx, outcomes)
        streams.remember({e: Stream(a.stream.number, a.head) for e, a in additions.items()})
        return outcomes

    async def _accept(
        self, tx: Transaction, messages: Sequence[_Message], additions: dict[str, _Addition]
    ) -> list[Outcome]:
        """Append what is new to the log, in the order of arrival; tell duplicates and conflicts."""
        known = await log.known(
            tx, [(additions[event_id].stream.number, m.id) for _, m, event_id in messages]
        )
        appended_at = self._clock()
        outcomes: list[Outcome] = []
        entries: list[log.Entry] = []
        for arrival, message, event_id in messages:
            addition = additions[event_id]
            key = (addition.stream.number, message.id)
            body = arrival.delivery.body.decode()
            if key in known:
                outcomes.append(_judge_again(arrival, message, event_id, known[key]))
                continue
            known[key] = body
            was_late = addition.accept(message)
            verdict = Verdict.LATE if was_late else Verdict.APPLIED
            outcomes.append(_outcome(arrival, message, event_id, verdict))
            entries.append(
                log.Entry(
                    *key,
                    message.sequence,
                    message.occurred_at,
                    message.kind,
                    was_late,
                    appended_at,
                    body,
                )
            )
        await log.append(tx, entries)
        return outcomes

    async def _apply(self, tx: Transaction, additions: dict[str, _Addition]) -> None:
        """Bring the rows of the streams up to their logs."""
        anew = [a.stream.number for a in additions.values() if a.must_fold_anew]
        bodies = await log.bodies(tx, anew)
        try:
            for event_id, addition in additions.items():
                if addition.must_fold_anew:
                    whole = map(self._registry.wire.validate_json, bodies[addition.stream.number])
                    await fold(self._registry, tx, event_id, whole, anew=True)
                else:
                    await fold(self._registry, tx, event_id, addition.accepted)
            await tx.flush()
        except StoreUnavailable:
            raise
        except Exception as error:
            raise _HandlerFailed from error

    async def _mark_orphans(self, tx: Transaction, outcomes: list[Outcome]) -> list[Outcome]:
        applied = (Verdict.APPLIED, Verdict.LATE)
        event_ids = {o.event_id for o in outcomes if o.verdict in applied and o.event_id}
        orphans = event_ids - await tables.with_rows(tx, self._registry.versions, event_ids)
        if not orphans:
            return outcomes
        return [
            outcome._replace(verdict=Verdict.ORPHAN)
            if outcome.verdict in applied and outcome.event_id in orphans
            else outcome
            for outcome in outcomes
        ]


def _judge_again(arrival: Arrival, message: AnyMessage, event_id: str, first: str) -> Outcome:
    """Decide a message whose id is known: the first of two contents counts."""
    if same_content(first, arrival.delivery.body.decode()):
        return _outcome(arrival, message, event_id, Verdict.DUPLICATE)
    detail = (
        f"The id {message.id!r} of event {event_id!r} is taken by another message, which arrived "
        f"first and counts. Publishers choose a new id for each message."
    )
    rejected = Rejected(Reason.ID_CONFLICT, detail)
    return _outcome(arrival, message, event_id, Verdict.REJECTED, rejected)


def _outcome(
    arrival: Arrival,
    message: AnyMessage,
    event_id: str,
    verdict: Verdict,
    rejected: Rejected | None = None,
) -> Outcome:
    return Outcome(arrival.delivery, verdict, rejected, message.kind, event_id, message.id)
