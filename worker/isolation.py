"""Finds the messages of one stream that cannot be applied, at the cost of a few folds.

A handler that fails names its message. If that is a new one, it is applied within a savepoint of
its own from then on, and rejected after its last attempt. If it is an older one, of the log, a late
message has come before it: that one is rejected, and told which message it breaks.
"""

from collections.abc import Collection, Iterable, Sequence

from worker.deliveries import Reason, Rejected
from worker.fold import Turns, apply, fold, is_late, position
from worker.messages import AnyMessage
from worker.registry import Registry
from worker.store.failures import Author, Failure, HandlersFailed, PlainAuthor
from worker.store.log import Position
from worker.store.transaction import StoreTransaction

# A handler sees only the message and the database, so one that failed will fail again, but for
# what nobody can rule out in foreign code. Three tries cost little, as they are rare.
HANDLER_ATTEMPTS = 3


class TrialEnded(Exception):
    """All messages of a trial have been applied or rejected; what it wrote is to be undone."""


class Isolation:
    """What is known of the failing messages of one stream."""

    def __init__(self, suspect: Author, good: Iterable[str] = ()) -> None:
        """Begin with what has failed first, and with the ids of new messages that do not."""
        self.rejected: dict[str, Rejected] = {}
        """Message id -> why."""
        self._suspect = suspect
        self._suspects: Collection[str | None] = [suspect.message_id]
        self._good = frozenset(good)
        self._new: frozenset[str] = frozenset()
        self._late: Sequence[str] = ()
        self._attempts = 0

    def after(self, good: Iterable[str]) -> "Isolation":
        """Return what is known before a trial of other messages, with some good ones."""
        return Isolation(self._suspect, good)

    def begin(self, accepted: Sequence[AnyMessage], head: Position | None) -> None:
        """Note which new messages are about to be applied, to a stream with this head."""
        self._new = frozenset(each.id for each in accepted)
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
                # One that had waited to be run belongs to a message before this one.
                if failure.author.message_id != message.id:
                    raise
        self._reject(
            [message.id],
            f"The handler of {message.kind!r} failed {HANDLER_ATTEMPTS} times: {failure}",
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
        """Whether more than one of the messages just applied is late, and not known to be good."""
        return len(self._late) > 1

    def reject_late(self, failure: Failure) -> None:
        """Reject the late messages, if each is to blame or a single one has had its attempts."""
        self._attempts += 1
        if self.has_several_late or self._attempts == HANDLER_ATTEMPTS:
            self._reject(
                self._late or self._new - self._good, f"The message is late, and {_broken(failure)}"
            )

    def _reject(self, ids: Iterable[str], detail: str) -> None:
        for each in ids:
            self.rejected[each] = Rejected(Reason.HANDLER_FAILED, detail)


def _broken(failure: Failure) -> str:
    author = failure.author
    if author.message_id is None:
        return f"the rows of its event cannot be removed: {failure}"
    return (
        f"its event cannot be folded again: the handler of {author.kind!r} failed for an older "
        f"message, {author.message_id!r}: {failure}"
    )
