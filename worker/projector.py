"""One batch of deliveries -> one transaction -> one outcome for each delivery.

Needs no broker: takes deliveries, returns outcomes. Promises: when `project` returns, the effect of
every outcome but a rejection is on the disk; when it raises, nothing is. A message that fails is
rejected alone, and its neighbours commit.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from worker.deliveries import Delivery, Folding, Outcome, Reason, Rejected, Verdict
from worker.errors import StoreConflict
from worker.fold import Addition, Turns, apply, fold
from worker.isolation import HANDLER_ATTEMPTS, Isolation, TrialEnded, rejection
from worker.late import fold_late, fold_whole
from worker.messages import AnyMessage, Arrival, now, same_content
from worker.registry import Registry
from worker.store.database import Writer
from worker.store.failures import Failure, HandlersFailed, Refused
from worker.store.log import Entry, MessageKey
from worker.store.transaction import StoreTransaction
from worker.tasks import SelfCancelled, contained

# Batches are this large only while a backlog is worked off.
BACKLOG_MESSAGES = 800
# Looking for duplicates costs a twentieth of a batch; a batch that was written in vain costs all.
WARY_BATCHES = 100
APPLIED = (Verdict.APPLIED, Verdict.LATE)

_Message = tuple[Delivery, AnyMessage, str]
"""A delivery, the message in it, and that one's event."""


class Projector:
    """The machine that applies batches. Belongs to one task."""

    def __init__(
        self,
        registry: Registry,
        writer: Writer,
        *,
        clock: Callable[[], str] = now,
        folding: Callable[[Folding], None] = lambda _: None,
    ) -> None:
        """Project with the registry's handlers into the writer's database.

        `folding` is called with the progress of each stream that is folded again.
        """
        self._registry = registry
        self._writer = writer
        self._clock = clock
        self._folding = folding
        self._wary_batches = 0
        self.conflicts = 0
        """How many transactions the database has ended because of another one."""

    async def project(
        self, batch: Sequence[Arrival], meanwhile: Callable[[], None] | None = None
    ) -> list[Outcome]:
        """Decide every delivery, in order, and commit; `meanwhile` is called during the commit.

        Raises `StoreUnavailable` if the database cannot commit now: nothing has happened then, and
        the same batch may be tried again. That is done here, once, if another worker's transaction
        was in the way.
        """
        messages = [
            (delivery, content, content.payload.event_id)
            for delivery, content in batch
            if not isinstance(content, Rejected)
        ]
        decided = await self._commit_again(messages, meanwhile) if messages else []
        if len(decided) == len(batch):
            return decided
        following = iter(decided)
        return [
            Outcome(delivery, Verdict.REJECTED, content)
            if isinstance(content, Rejected)
            else next(following)
            for delivery, content in batch
        ]

    async def _commit_again(
        self, messages: Sequence[_Message], meanwhile: Callable[[], None] | None
    ) -> list[Outcome]:
        """Commit a batch; try once more if the database has ended the transaction for another."""
        try:
            return await self._commit(messages, meanwhile)
        except StoreConflict:
            self.conflicts += 1
            # `meanwhile` may have been called: a database may notice the conflict as late as then.
            return await self._commit(messages, None)

    async def _commit(
        self, messages: Sequence[_Message], meanwhile: Callable[[], None] | None
    ) -> list[Outcome]:
        # If nothing was redelivered, nearly every batch is all new; the log's key refuses a message
        # that is not.
        must_look = self._wary_batches > 0 or any(d.redelivered for d, _, _ in messages)
        self._wary_batches = max(0, self._wary_batches - 1)
        try:
            if not must_look:
                try:
                    return await self._commit_unseen(messages, meanwhile)
                except Refused:
                    # A publisher that repeats itself does so more than once.
                    self._wary_batches = WARY_BATCHES
            return await self._commit_together(messages, meanwhile)
        except HandlersFailed as failed:
            failures = failed.failures
        try:
            return await self._commit_apart(messages, failures)
        except HandlersFailed:
            return await self._commit_in_parts(messages)

    async def _commit_unseen(
        self, messages: Sequence[_Message], meanwhile: Callable[[], None] | None
    ) -> list[Outcome]:
        """Commit a batch of new messages; raises `Refused` if the log knows one of them."""
        async with self._transaction(messages, meanwhile) as tx:
            return await self._write(tx, messages, looks_first=False)

    async def _commit_together(
        self, messages: Sequence[_Message], meanwhile: Callable[[], None] | None
    ) -> list[Outcome]:
        """Commit a batch, whatever the log knows of it; raises `HandlersFailed`."""
        async with self._transaction(messages, meanwhile) as tx:
            return await self._write(tx, messages)

    async def _commit_apart(
        self, messages: Sequence[_Message], failures: Mapping[str, Failure]
    ) -> list[Outcome]:
        """Commit a batch without the messages that fail; find those stream by stream.

        Raises `HandlersFailed` if a message fails now that was not found, as by chance.
        """
        streams_of_batch: dict[str, list[_Message]] = {}
        for each in messages:
            streams_of_batch.setdefault(each[2], []).append(each)
        rejected: dict[str, Rejected] = {}
        async with self._transaction(messages) as tx:
            for event_id, failure in failures.items():
                isolation, of_stream = Isolation(failure.author), streams_of_batch[event_id]
                rejected |= await self._find_failing(tx, isolation, [], of_stream)
            left = _without(rejected, messages)
            outcomes = iter(await self._write(tx, left))
        return [
            _rejected(each, rejected[body]) if (body := _body(each)) in rejected else next(outcomes)
            for each in messages
        ]

    async def _commit_in_parts(self, messages: Sequence[_Message]) -> list[Outcome]:
        """Commit a batch whose messages fail by chance, or only beside others."""
        async with self._transaction(messages) as tx:
            return await self._keep(tx, messages)

    async def _keep(self, tx: StoreTransaction, messages: Sequence[_Message]) -> list[Outcome]:
        """Write messages; write each half by itself if that fails, and reject a single message."""
        is_single = len(messages) == 1
        for _ in range(HANDLER_ATTEMPTS if is_single else 1):
            try:
                async with tx.savepoint():
                    return await self._write(tx, messages)
            except HandlersFailed as failed:
                failure = next(iter(failed.failures.values()))
        if is_single:
            (each,) = messages
            return [_rejected(each, rejection(each[1], failure))]
        middle = len(messages) // 2
        first = await self._keep(tx, messages[:middle])
        return [*first, *await self._keep(tx, messages[middle:])]

    @asynccontextmanager
    async def _transaction(
        self, messages: Sequence[_Message], meanwhile: Callable[[], None] | None = None
    ) -> AsyncIterator[StoreTransaction]:
        """Begin, with the streams of all messages locked, and commit."""
        in_bulk = len(messages) >= BACKLOG_MESSAGES
        async with self._writer.transaction(in_bulk=in_bulk, meanwhile=meanwhile) as tx:
            await tx.lock({event_id for _, _, event_id in messages}, self._registry.versions)
            yield tx

    async def _find_failing(
        self,
        tx: StoreTransaction,
        isolation: Isolation,
        good: Sequence[_Message],
        messages: Sequence[_Message],
    ) -> Mapping[str, Rejected]:
        """Return the messages of a stream that cannot be applied after good ones; write nothing.

        Maps body -> reason.
        """
        while left := _without(isolation.rejected, messages):
            try:
                async with tx.savepoint():
                    await self._write(tx, [*good, *left], isolation=isolation)
            except TrialEnded:
                return isolation.rejected
            except HandlersFailed as failed:
                (failure,) = failed.failures.values()
            if isolation.suspects_more(failure):
                continue
            event_id = messages[0][2]
            if isolation.has_several_late and await self._can_be_folded(tx, event_id):
                # One of them breaks an older message. Trials of fewer at once show which.
                middle = len(left) // 2
                for half in (left[:middle], left[middle:]):
                    apart = isolation.after(each[1].id for each in good)
                    found = await self._find_failing(tx, apart, good, half)
                    good = [*good, *_without(found, half)]
                    isolation.rejected.update(found)
                return isolation.rejected
            isolation.reject_late(failure)
        return isolation.rejected

    async def _write(
        self,
        tx: StoreTransaction,
        messages: Sequence[_Message],
        *,
        looks_first: bool = True,
        isolation: Isolation | None = None,
    ) -> list[Outcome]:
        found = await tx.streams(dict.fromkeys(event_id for _, _, event_id in messages))
        additions = {event_id: Addition(stream) for event_id, stream in found.items()}
        known: dict[MessageKey, str] = {}
        if looks_first:
            keys = [(additions[event_id].stream.key, m.id) for _, m, event_id in messages]
            known = await tx.known(keys)
        outcomes = self._accept(tx, messages, known, additions)
        if isolation is not None:
            for addition in additions.values():
                isolation.begin(addition)
        try:
            orphans = await contained(self._apply(tx, additions, isolation))
        except SelfCancelled as error:
            # Or an earlier one; it is found when it is alone.
            tx.register.raise_for_handler(error, tx.statements.author)
            raise
        tx.remember({event_id: addition.result() for event_id, addition in additions.items()})
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
        messages: Sequence[_Message],
        known: dict[MessageKey, str],
        additions: dict[str, Addition],
    ) -> list[Outcome]:
        """Append new messages to the log, in the order of arrival; judge the others."""
        appended_at = self._clock()
        outcomes: list[Outcome] = []
        entries: list[Entry] = []
        for delivery, message, event_id in messages:
            body, kind, message_id = delivery.body.decode(), message.kind, message.id
            addition = additions[event_id]
            key = (addition.stream.key, message_id)
            if key in known:
                verdict, rejected = _judge_again(message, body, known[key])
            else:
                known[key] = body
                is_late = addition.accept(message, body)
                verdict, rejected = Verdict.LATE if is_late else Verdict.APPLIED, None
                sequence, at = message.sequence, message.occurred_at
                since = delivery.appended_at or appended_at
                entries.append((*key, sequence, at, kind, int(is_late), since, body))
            outcomes.append(Outcome(delivery, verdict, rejected, kind, event_id, message_id))
        tx.append(entries)
        return outcomes

    async def _apply(
        self, tx: StoreTransaction, additions: dict[str, Addition], isolation: Isolation | None
    ) -> set[str]:
        """Bring the rows up to the log; return the changed events that have no row.

        Raises `HandlersFailed` with all streams that fail; `TrialEnded` if messages are isolated.
        """
        changed = {event_id: a for event_id, a in additions.items() if a.messages}
        late = {event_id: a for event_id, a in changed.items() if a.newest_late}
        turns = Turns()
        one = apply if isolation is None else isolation.apply
        if late:
            await fold_late(self._registry, tx, late, self._folding, one)
        for event_id, addition in changed.items():
            if event_id in late:
                continue
            try:
                await fold(self._registry, tx, addition.messages, turns, one)
                addition.follow_snapshot()
            except HandlersFailed:
                # The register has it. The other streams are tried, too, to find all failures.
                continue
        tx.register.require_no_failure()
        if isolation is not None:
            await tx.flush()
            raise TrialEnded
        # This also runs all statements that wait.
        with_rows = await tx.with_rows(self._registry.versions, changed)
        tx.register.require_no_failure()
        return changed.keys() - with_rows

    async def _can_be_folded(self, tx: StoreTransaction, event_id: str) -> bool:
        """Return whether the fold of a stream succeeds without any new message."""
        stream = (await tx.streams([event_id]))[event_id]
        try:
            async with tx.savepoint():
                await fold_whole(self._registry, tx, event_id, stream.key)
        except HandlersFailed:
            return False
        return True


def _without(rejected: Mapping[str, Rejected], messages: Sequence[_Message]) -> list[_Message]:
    return [each for each in messages if _body(each) not in rejected]


def _body(each: _Message) -> str:
    return each[0].body.decode()


def _rejected(each: _Message, rejected: Rejected) -> Outcome:
    delivery, message, event_id = each
    return Outcome(delivery, Verdict.REJECTED, rejected, message.kind, event_id, message.id)


def _judge_again(message: AnyMessage, body: str, first: str) -> tuple[Verdict, Rejected | None]:
    """Decide a message whose id is known: the first of two contents counts."""
    if same_content(first, body):
        return Verdict.DUPLICATE, None
    detail = (
        f"The id {message.id!r} of event {message.event_id!r} is taken by another message, which "
        f"arrived first and counts. Publishers choose a new id for each message."
    )
    return Verdict.REJECTED, Rejected(Reason.ID_CONFLICT, detail)
