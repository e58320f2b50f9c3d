"""The heads of streams: the position of each one's last message, which tells what comes late.

They follow from the log and are stored nowhere else. Those of the streams that live are remembered;
the others are read from the pages of the log to which their message is about to be written.
"""

import json
from collections.abc import Iterable, Mapping

from worker.store.transaction import Transaction

Position = tuple[int, str, str]

# Some 400 bytes each. A stream that has been forgotten costs a read of all its entries.
REMEMBERED = 10_000
HEADS = """
    SELECT log.event_id, log.sequence, log.occurred_at, log.id
    FROM json_each(?) AS stream
    JOIN log ON log.event_id = stream.value AND log.id = (
        SELECT id FROM log WHERE event_id = stream.value
        ORDER BY sequence DESC, occurred_at DESC, id DESC LIMIT 1
    )
"""


class Heads:
    """What is known of the heads as of the last commit; drop it when a transaction fails."""

    def __init__(self) -> None:
        """Know none."""
        # The one that was asked for longest ago comes first.
        self._remembered: dict[str, Position] = {}

    async def of(self, tx: Transaction, event_ids: Iterable[str]) -> dict[str, Position]:
        """Give the head of each of those streams that has one."""
        heads: dict[str, Position] = {}
        others: list[str] = []
        for event_id in event_ids:
            if head := self._remembered.pop(event_id, None):
                heads[event_id] = self._remembered[event_id] = head
            else:
                others.append(event_id)
        if others:
            rows = await tx.fetch_all(HEADS, (json.dumps(others, ensure_ascii=False),))
            for event_id, sequence, occurred_at, message_id in rows:
                heads[event_id] = (sequence, occurred_at, message_id)
        return heads

    def remember(self, heads: Mapping[str, Position]) -> None:
        """Note the new heads of streams, and forget those that nobody has asked for longest."""
        for event_id, head in heads.items():
            self._remembered.pop(event_id, None)
            self._remembered[event_id] = head
        while len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
