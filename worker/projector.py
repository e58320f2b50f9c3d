"""One batch of deliveries -> one transaction -> one outcome for each delivery.

Needs no broker: takes deliveries, gives outcomes. Promises: when `project` returns, the effect of
every outcome but a rejection is on the disk; when it raises, nothing is. A message that fails is
found by itself, and its neighbours commit.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from worker.deliveries import Delivery, Outcome, Reason, Rejected, Verdict
from worker.errors import StoreUnavailable
from worker.fold import fold, is_late, position
from worker.messages import AnyMessage, Arrival, now, same_content
from worker.registry import Registry
from worker.store import log, tables
from worker.store.connection import Writer
from worker.store.streams import Stream, Streams
from worker.store.transaction import StoreTransaction

# A handler sees only the message and the database, so one that failed will fail again, but for
# what nobody can rule out in foreign code. Three tries cost little, as they are rare.
HANDLER_ATTEMPTS = 3
# So many arrive together only where a backlog is worked off.
BACKLOG_MESSAGES = 800
# To look for duplicates costs a twentieth of a batch, not to have looked a whole one.
WARY_BATCHES = 100
APPLIED = (Verdict.APPLIED, Verdict.LATE)

_Message = tuple[Delivery, AnyMessage, str]
"""A delivery, the message in it, and that one's event."""


class _Addition:
    """What a batch brings to one stream."""

    __slots__ = ("accepted", "head", "must_fold_anew", "stream")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.head = stream.head
        self.accepted: list[AnyMessage] = []
        self.must_fold_anew = False

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


class _MayBeKnown(Exception):
    """Something failed, and nobody had looked whether the log knows one of the messages."""


class _HandlerFailed(Exception):
    """A handler failed, or a statement of one."""


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
        self._wary_batches = 0

    async def project(
        self, batch: Sequence[Arrival], meanwhile: Callable[[], None] | None = None
    ) -> list[Outcome]:
        """Decide every delivery, in order, and commit; `meanwhile` is called during the commit.

        Raises `StoreUnavailable` if the database cannot commit now: nothing has happened then, and
        the same batch may be tried again.
        """
        messages = [
            (delivery, content, content.payload.event_id)
            for delivery, content in batch
            if not isinstance(content, Rejected)
        ]
        decided = await self._commit(messages, meanwhile) if messages else []
        if len(decided) == len(batch):
            return decided
        following = iter(decided)
        return [
            Outcome(delivery, Verdict.REJECTED, content)
            if isinstance(content, Rejected)
            else next(following)
            for delivery, content in batch
        ]

    async def _commit(
        self, messages: Sequence[_Message], meanwhile: Callable[[], None] | None
    ) -> list[Outcome]:
        # Where nothing was delivered before, nearly every batch is all new: the log's key would
        # refuse a message that is not.
        must_look = self._wary_batches > 0 or any(d.redelivered for d, _, _ in messages)
        self._wary_batches = max(0, self._wary_batches - 1)
        if not must_look:
            try:
                return await self._commit_unseen(messages, meanwhile)
            except _MayBeKnown:
                # A publisher that repeats itself does so more than once.
                self._wary_batches = WARY_BATCHES
        try:
            return await self._commit_together(messages, meanwhile)
        except _HandlerFailed:
            return await self._commit_one_by_one(messages)

    async def _commit_unseen(
        self, messages: Sequence[_Message], meanwhile: Callable[[], None] | None
    ) -> list[Outcome]:
        """Commit what is thought to be new to the log; raises `_MayBeKnown` if anything fails."""
        try:
            async with self._transaction(messages, meanwhile) as (tx, streams):
                return await self._write(tx, messages, streams, looks_first=False)
        except _HandlerFailed as error:
            raise _MayBeKnown from error

    async def _commit_together(
        self, messages: Sequence[_Message], meanwhile: Callable[[], None] | None
    ) -> list[Outcome]:
        """Commit after a look at the log; raises `_HandlerFailed` if that of any message fails."""
        async with self._transaction(messages, meanwhile) as (tx, streams):
            return await self._write(tx, messages, streams, looks_first=True)

    async def _commit_one_by_one(self, messages: Sequence[_Message]) -> list[Outcome]:
        """Commit all messages but those that fail."""
        async with self._transaction(messages) as (tx, streams):
            return [await self._write_alone(tx, each, streams) for each in messages]

    @asynccontextmanager
    async def _transaction(
        self, messages: Sequence[_Message], meanwhile: Callable[[], None] | None = None
    ) -> AsyncIterator[tuple[StoreTransaction, Streams]]:
        """Begin and commit; what is remembered of streams is dropped if that fails."""
        streams, self._streams = self._streams, Streams()
        in_bulk = len(messages) >= BACKLOG_MESSAGES
        async with self._writer.transaction(in_bulk=in_bulk, meanwhile=meanwhile) as tx:
            yield tx, streams
        self._streams = streams

    async def _write_alone(
        self, tx: StoreTransaction, alone: _Message, streams: Streams
    ) -> Outcome:
        """Write one message so that its failure undoes nothing but itself."""
        for _ in range(HANDLER_ATTEMPTS):
            try:
                async with tx.savepoint():
                    (outcome,) = await self._write(tx, [alone], streams, looks_first=True)
                    return outcome
            except _HandlerFailed as failure:
                cause = failure.__cause__
        delivery, message, event_id = alone
        detail = (
            f"The handler of {message.kind!r} failed {HANDLER_ATTEMPTS} times: "
            f"{type(cause).__name__}: {cause}"
        )
        rejected = Rejected(Reason.HANDLER_FAILED, detail)
        return Outcome(delivery, Verdict.REJECTED, rejected, message.kind, event_id, message.id)

    async def _write(
        self,
        tx: StoreTransaction,
        messages: Sequence[_Message],
        streams: Streams,
        *,
        looks_first: bool,
    ) -> list[Outcome]:
        found = await streams.of(tx, dict.fromkeys(event_id for _, _, event_id in messages))
        additions = {event_id: _Addition(stream) for event_id, stream in found.items()}
        keys = [(additions[event_id].stream.number, m.id) for _, m, event_id in messages]
        known = await log.known(tx, keys) if looks_first else {}
        outcomes = self._accept(tx, list(zip(keys, messages, strict=True)), known, additions)
        if looks_first:
            # From here on, what fails is a handler's.
            await tx.flush()
        orphans = await self._apply(tx, additions)
        streams.remember({e: Stream(a.stream.number, a.head) for e, a in additions.items()})
        if not orphans:
            return outcomes
        return [
            outcome._replace(verdict=Verdict.ORPHAN)
            if outcome.verdict in APPLIED and outcome.event_id in orphans
            else outcome
            for outcome in outcomes
        ]

    def _accept(
        self,
        tx: StoreTransaction,
        messages: Sequence[tuple[log.Key, _Message]],
        known: dict[log.Key, str],
        additions: dict[str, _Addition],
    ) -> list[Outcome]:
        """Append what is new to the log, in the order of arrival; tell duplicates and conflicts."""
        appended_at = self._clock()
        outcomes: list[Outcome] = []
        entries: list[log.Entry] = []
        for key, (delivery, message, event_id) in messages:
            body = delivery.body.decode()
            if key in known:
                verdict, rejected = _judge_again(message, body, known[key])
            else:
                known[key] = body
                is_late = additions[event_id].accept(message)
                verdict, rejected = Verdict.LATE if is_late else Verdict.APPLIED, None
                entries.append(
                    (
                        *key,
                        message.sequence,
                        message.occurred_at,
                        message.kind,
                        int(is_late),
                        appended_at,
                        body,
                    )
                )
            outcomes.append(
                Outcome(delivery, verdict, rejected, message.kind, event_id, message.id)
            )
        log.append(tx, entries)
        return outcomes

    async def _apply(self, tx: StoreTransaction, additions: dict[str, _Addition]) -> set[str]:
        """Bring the rows of the streams up to their logs; give the events that have no row then."""
        changed = {event_id: a for event_id, a in additions.items() if a.accepted}
        anew = [a.stream.number for a in changed.values() if a.must_fold_anew]
        try:
            bodies = await log.bodies(tx, anew)
            for event_id, addition in changed.items():
                if addition.must_fold_anew:
                    whole = map(self._registry.wire.validate_json, bodies[addition.stream.number])
                    await fold(self._registry, tx, event_id, whole, anew=True)
                else:
                    await fold(self._registry, tx, event_id, addition.accepted)
            # What has been written for all of them is run by this.
            return changed.keys() - await tables.with_rows(tx, self._registry.versions, changed)
        except StoreUnavailable:
            raise
        except Exception as error:
            raise _HandlerFailed from error


def _judge_again(message: AnyMessage, body: str, first: str) -> tuple[Verdict, Rejected | None]:
    """Decide a message whose id is known: the first of two contents counts."""
    if same_content(first, body):
        return Verdict.DUPLICATE, None
    detail = (
        f"The id {message.id!r} of event {message.event_id!r} is taken by another message, which "
        f"arrived first and counts. Publishers choose a new id for each message."
    )
    return Verdict.REJECTED, Rejected(Reason.ID_CONFLICT, detail)
