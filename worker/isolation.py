"""Finds the messages of one stream that cannot be applied, at the cost of a few folds.

A handler that fails names its message. If that is a new one, it is applied within a savepoint of
its own from then on, and rejected after its last attempt. If it is an older message of the log, a
late message has come before it: the late one is rejected, with the name of the one that it breaks.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from worker.deliveries import Reason, Rejected
from worker.fold import Addition, Turns, apply, fold, is_late, position
from worker.messages import AnyMessage
from worker.registry import Registry
from worker.store.failures import Author, Failure, HandlersFailed, PlainAuthor
from worker.store.transaction import StoreTransaction

# A handler sees only the message and the database, so a failure usually repeats itself. But other
# people's code may fail by chance, and three attempts cost little because they are rare.
HANDLER_ATTEMPTS = 3


class TrialEnded(Exception):
    """Each message of a trial has been applied or rejected; what the trial wrote must be undone."""


class Isolation:
    """What is known of the failing messages of one stream."""

    def __init__(self, suspect: Author, good: Iterable[str] = ()) -> None:
        """Begin with the author of the first failure, and with the ids of good new messages."""
        self.rejected: dict[str, Rejected] = {}
        """Body -> why. A publisher may use an id again for other content, which may not fail."""
        self._suspect = suspect
        self._suspects: Collection[str | None] = [suspect.message_id]
        self._good = frozenset(good)
        self._new: Mapping[str, str] = {}
        """Message id -> body."""
        self._late: Sequence[str] = ()
        self._attempts = 0

    def after(self, good: Iterable[str]) -> "Isolation":
        """Return a fresh start for a trial of other messages after these good ones."""
        return Isolation(self._suspect, good)

    def begin(self, addition: Addition) -> None:
        """Note which new messages are about to be applied to the stream."""
        accepted, head = addition.messages, addition.stream.head
        self._new = {each.id: body for each, body in zip(accepted, addition.bodies, strict=True)}
        self._late = [
            each.id
            for each in accepted
            if is_late(position(each), head) and each.id not in self._good
        ]

    async def apply(
        self, registry: Registry, tx: StoreTransaction, author: PlainAuthor, message: AnyMessage
    ) -> None:
        """Apply a message; reject it if it is a suspect and fails at every attempt."""
        if message.id not in self._suspects or message.id not in self._new:
            return await apply(registry, tx, author, message)
        for _ in range(HANDLER_ATTEMPTS):
            try:
                async with tx.savepoint():
                    await fold(registry, tx, [message], Turns())
                return None
            except HandlersFailed as failed:
                failure = failed.failures[message.event_id]
                # A statement that was still waiting belongs to an earlier message.
                if failure.author.message_id != message.id:
                    raise
        self._reject(
            [message.id],
            rejection(message, failure),
        )
        return None

    def suspects_more(self, failure: Failure) -> bool:
        """Return whether a new message has failed; all new ones are suspects from then on."""
        if failure.author.message_id not in self._new:
            return False
        self._suspects = self._new
        return True

    @property
    def has_several_late(self) -> bool:
        """Whether several of the messages just applied are late, and not known as good."""
        return len(self._late) > 1

    def reject_late(self, failure: Failure) -> None:
        """Reject several late messages at once, but a single one only after its last attempt."""
        self._attempts += 1
        if self.has_several_late or self._attempts == HANDLER_ATTEMPTS:
            self._reject(self._late or self._new.keys() - self._good, _rejection_of_late(failure))

    def _reject(self, ids: Iterable[str], rejected: Rejected) -> None:
        for each in ids:
            self.rejected[self._new[each]] = rejected


def rejection(message: AnyMessage, failure: Failure) -> Rejected:
    """Return why a message is rejected whose last attempt ended with this failure."""
    if failure.author.message_id != message.id:
        return _rejection_of_late(failure)
    return Rejected(
        Reason.HANDLER_FAILED,
        f"The handler of {message.kind!r} failed {HANDLER_ATTEMPTS} times: {failure}",
    )


def _rejection_of_late(failure: Failure) -> Rejected:
    return Rejected(Reason.HANDLER_FAILED, f"The message is late, and {_broken(failure)}")


def _broken(failure: Failure) -> str:
    author = failure.author
    if author.message_id is None:
        return f"the rows of its event cannot be removed: {failure}"
    return (
        f"its event cannot be folded again: the handler of {author.kind!r} failed for an older "
        f"message, {author.message_id!r}: {failure}"
    )
