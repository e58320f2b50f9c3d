"""Late messages: fold their streams again, from a snapshot where there is one.

A stream is read and folded in pieces, so that neither the memory nor the time between two turns of
the event loop grows with its length. On the way, its rows right after the newest late message are
remembered: the next late message that comes after that one needs no more than them. Promise: the
rows are those of a fold of the whole stream.
"""

import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from worker.deliveries import Folding
from worker.fold import Addition, Apply, Turns, fold, position, replace_rows, stored
from worker.messages import AnyMessage
from worker.registry import Registry
from worker.store.failures import HandlersFailed
from worker.store.log import BEFORE_ALL, MESSAGE_SIZE, PIECE_SIZE, Key, Position
from worker.store.streams import Snapshot
from worker.store.transaction import StoreTransaction

Entry = tuple[AnyMessage, str]
"""A message, and the body that it was read from."""
Piece = dict[str, list[Entry]]
"""Some messages of streams, by event, in the order of position."""


async def fold_late(
    registry: Registry,
    tx: StoreTransaction,
    additions: Mapping[str, Addition],
    folding: Callable[[Folding], None],
    apply: Apply,
) -> None:
    """Fold streams again whose late messages have been added to the log.

    Sets each addition's snapshot. Reports to `folding` after each piece, and at the end of each
    stream. Failures are in the transaction's register; the other streams are folded all the same.
    """
    await _LateFold(registry, tx, additions, folding, apply).run()


async def fold_whole(registry: Registry, tx: StoreTransaction, event_id: str, stream: Key) -> None:
    """Fold all that the log has of one stream; raises `HandlersFailed`."""
    turns = Turns()
    await replace_rows(registry, tx, event_id, {})
    async for piece in tx.pieces({stream: BEFORE_ALL}):
        for bodies in piece.values():
            await fold(registry, tx, stored(registry, tx, event_id, bodies), turns)


class _LateFold:
    def __init__(
        self,
        registry: Registry,
        tx: StoreTransaction,
        additions: Mapping[str, Addition],
        folding: Callable[[Folding], None],
        apply: Apply,
    ) -> None:
        self._registry = registry
        self._tx = tx
        self._additions = additions
        self._folding = folding
        self._apply_one = apply
        self._turns = Turns()
        self._snapshots: dict[str, Snapshot | None] = {}
        """Event -> what was remembered right after the newest late message, once that is folded."""
        self._folded: dict[str, Folding] = {}

    async def run(self) -> None:
        began_at = time.monotonic()
        async for piece in self._pieces():
            await self._fold(piece)
            ended_at = time.monotonic()
            self._report(piece, ended_at - began_at)
            began_at = ended_at
        for event_id, addition in self._additions.items():
            addition.snapshot = self._snapshots.get(event_id)
        for folded in self._folded.values():
            self._folding(folded._replace(is_done=True))

    async def _pieces(self) -> AsyncIterator[Piece]:
        """Restore the rows of each stream's snapshot; return all messages that follow it."""
        starts: dict[Key, Position] = {}
        events: dict[Key, str] = {}
        remembered: dict[str, list[Entry]] = {}
        for event_id, addition in self._additions.items():
            snapshot = addition.usable_snapshot()
            rows = snapshot.rows if snapshot else {}
            await replace_rows(self._registry, self._tx, event_id, rows)
            if snapshot is not None and snapshot.tail is not None:
                tail = self._entries(event_id, snapshot.tail)
                new = zip(addition.messages, addition.bodies, strict=True)
                remembered[event_id] = sorted([*new, *tail], key=_position)
            else:
                starts[addition.stream.key] = snapshot.position if snapshot else BEFORE_ALL
                events[addition.stream.key] = event_id
        for piece in _cut(remembered):
            yield piece
        async for bodies in self._tx.pieces(starts):
            yield self._decoded({events[stream]: each for stream, each in bodies.items()})

    def _decoded(self, bodies: Mapping[str, list[str]]) -> Piece:
        piece: Piece = {}
        for event_id, of_event in bodies.items():
            # What fails is in the register.
            with suppress(HandlersFailed):
                if event_id not in self._tx.register.of_handlers:
                    piece[event_id] = self._entries(event_id, of_event)
        return piece

    def _entries(self, event_id: str, bodies: Sequence[str]) -> list[Entry]:
        """Return messages of one stream in the order of position."""
        messages = stored(self._registry, self._tx, event_id, bodies)
        return sorted(zip(messages, bodies, strict=True), key=_position)

    async def _fold(self, piece: Piece) -> None:
        """Fold a piece; remember the rows of each stream right after its newest late message."""
        after: Piece = {}
        for event_id, entries in piece.items():
            newest_late = self._additions[event_id].newest_late
            cut = bisect_right(entries, newest_late or BEFORE_ALL, key=_position)
            await self._apply(entries[:cut])
            if cut < len(entries):
                after[event_id] = entries[cut:]
        await self._remember([event_id for event_id in after if event_id not in self._snapshots])
        for event_id, entries in after.items():
            await self._apply(entries)
            if snapshot := self._snapshots[event_id]:
                self._snapshots[event_id] = snapshot.followed_by(body for _, body in entries)

    async def _apply(self, entries: list[Entry]) -> None:
        messages = [message for message, _ in entries]
        # What fails is in the register.
        with suppress(HandlersFailed):
            await fold(self._registry, self._tx, messages, self._turns, self._apply_one)

    async def _remember(self, event_ids: list[str]) -> None:
        rows = await self._tx.lone_rows(self._registry.versions, event_ids)
        for event_id in event_ids:
            newest_late = self._additions[event_id].newest_late
            of_event = rows[event_id]
            self._snapshots[event_id] = (
                Snapshot.of(newest_late, of_event)
                if newest_late is not None and of_event is not None
                else None
            )

    def _report(self, piece: Piece, seconds: float) -> None:
        """Report the progress of a piece's streams; its messages share its time equally."""
        of_message = seconds / max(1, sum(map(len, piece.values())))
        for event_id, entries in piece.items():
            before = self._folded.get(event_id, Folding(event_id, 0, 0.0))
            folded = self._folded[event_id] = before._replace(
                messages=before.messages + len(entries),
                seconds=before.seconds + of_message * len(entries),
            )
            self._folding(folded)


def _position(entry: Entry) -> Position:
    return position(entry[0])


def _cut(streams: Mapping[str, list[Entry]]) -> Iterator[Piece]:
    """Cut streams into pieces of no more than `PIECE_SIZE`, or one message."""
    piece: Piece = {}
    room = PIECE_SIZE
    for event_id, entries in streams.items():
        for entry in entries:
            size = len(entry[1]) + MESSAGE_SIZE
            if piece and size > room:
                yield piece
                piece, room = {}, PIECE_SIZE
            piece.setdefault(event_id, []).append(entry)
            room -= size
    if piece:
        yield piece
