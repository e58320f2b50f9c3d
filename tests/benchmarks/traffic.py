"""Messages as chat servers publish them, mixed as in a real log of 219,391 messages.

That log (BPI Challenge 2012: work items of loan applications) has ten messages per event: planned,
started, completed, then reverted, started and completed again, any number of times. Half of an
event's messages follow the previous one within 6 messages of the log, 90 % within 2,014. Only these
frequencies are used here; all ids are random UUIDs, which is the worst case for a database.
"""

import heapq
import itertools
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

# How often a kind follows another in an event's life; the rest of the events end there.
FOLLOWING: dict[str, dict[str | None, int]] = {
    "event_planned": {
        "event_started": 22_090,
        "event_status_reverted": 2_339,
        "event_completed": 1_818,
        None: 66,
    },
    "event_started": {"event_completed": 69_561, "event_planned": 1_810, None: 5},
    "event_completed": {
        "event_status_reverted": 46_945,
        "event_planned": 2_344,
        "event_completed": 1_034,
        None: 22_090,
    },
    "event_status_reverted": {"event_started": 49_284},
}
# The share of messages that follow the previous one of their event within so many messages.
GAPS = (
    (0.0, 1), (0.25, 1), (0.5, 6), (0.6, 15), (0.75, 136), (0.8, 360), (0.85, 812), (0.9, 2_014),
    (0.95, 5_651), (0.98, 10_604), (0.99, 12_525), (0.999, 30_121), (1.0, 77_848),
)  # fmt: skip
GAP_SHARES = [share for share, _ in GAPS]
EVENTS_OF_A_CHAT = 2.3
KINDS_OF_EVENT = ("reminder", "follow-up call", "offer", "appointment", "assessment")
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
# Seven messages per minute.
APART = timedelta(milliseconds=8_600)


class Sent(NamedTuple):
    """One message, with what its publisher knows about it."""

    event_id: str
    id: str
    sequence: int
    """Its position in the publisher's log."""
    occurred_at: str
    kind: str
    chat_id: str
    """Its routing key."""
    body: str

    @property
    def document(self) -> dict[str, Any]:
        """The message in the form that the oracle expects."""
        return dict(json.loads(self.body))


class Traffic:
    """A publisher's endless log; equal seeds produce equal messages."""

    def __init__(self, seed: int = 1) -> None:
        """Begin an empty log."""
        self._random = Random(seed)
        self._numbers = itertools.count(1)
        self._chats: list[str] = []
        # The unfinished events: (position of the next message, event_id, kind before, chat_id).
        self._open: list[tuple[int, str, str, str]] = []
        self._choices = {
            kind: (list(following), list(itertools.accumulate(following.values())))
            for kind, following in FOLLOWING.items()
        }

    def take(self, messages: int) -> list[Sent]:
        """Return the next messages."""
        return [self._next(number) for number in itertools.islice(self._numbers, messages)]

    def _next(self, number: int) -> Sent:
        if self._open and self._open[0][0] <= number:
            _, event_id, before, chat_id = heapq.heappop(self._open)
            kind = self._following(before)
        else:
            event_id, kind, chat_id = self._uuid(), "event_planned", self._chat()
        if kind is None:
            return self._next(number)
        heapq.heappush(self._open, (number + self._gap(), event_id, kind, chat_id))
        moment = (BEGINNING + number * APART).isoformat(timespec="milliseconds")
        at = moment.replace("+00:00", "Z")
        message_id = self._uuid()
        body = (
            f'{{"id":"{message_id}","kind":"{kind}","occurred_at":"{at}","sequence":{number},'
            f'"payload":{{"event_id":"{event_id}",{self._payload(kind, chat_id, at)}}}}}'
        )
        return Sent(event_id, message_id, number, f"{at[:-1]}000Z", kind, chat_id, body)

    def _following(self, kind: str) -> str | None:
        kinds, shares = self._choices[kind]
        return kinds[bisect_right(shares, self._random.random() * shares[-1])]

    def _gap(self) -> int:
        """Choose a distance; between two known shares its logarithm is evenly distributed."""
        share = self._random.random()
        place = bisect_right(GAP_SHARES, share)
        (low, nearest), (high, farthest) = GAPS[place - 1], GAPS[place]
        between = (share - low) / (high - low)
        return round(nearest * math.pow(farthest / nearest, between))

    def _chat(self) -> str:
        if not self._chats or self._random.random() < 1 / EVENTS_OF_A_CHAT:
            self._chats.append(self._uuid())
        # Mostly one of the latest, because chats end as well.
        latest = int(-math.log(1 - self._random.random()) * 500)
        return self._chats[-1 - latest % len(self._chats)]

    def _payload(self, kind: str, chat_id: str, at: str) -> str:
        match kind:
            case "event_planned":
                number = self._random.randrange(10_000, 12_000)
                return (
                    f'"chat_id":"{chat_id}","kind":"{self._random.choice(KINDS_OF_EVENT)}",'
                    f'"props":{{"resource":"{number}"}},"planned_for":"{at}"'
                )
            case "event_started":
                return f'"started_at":"{at}"'
            case "event_status_reverted":
                return '"prior_status":"planned"'
        return f'"completed_at":"{at}"'

    def _uuid(self) -> str:
        digits = f"{self._random.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def write(file: Path, messages: Iterable[Sent]) -> None:
    """Write messages to a file, for the process that publishes them."""
    with file.open("w") as lines:
        lines.writelines(f"{message.chat_id}\t{message.body}\n" for message in messages)


def read(file: Path) -> Iterator[tuple[bytes, bytes]]:
    """Return (routing key, body) of every message in a file."""
    with file.open("rb") as lines:
        for line in lines:
            routing_key, _, body = line.rstrip(b"\n").partition(b"\t")
            yield routing_key, body
