"""A week of forty chats, as their servers publish it: the messages, their order, and the faults.

Everything follows from one seed. This module knows no broker and no worker: it has the reasons as
docs/operate.md states them, so that the fate of each broken message is known before it is sent.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from itertools import count
from random import Random
from typing import Any
from uuid import UUID

Message = dict[str, Any]

CHATS = 40
EVENTS = 1_200
UNPLANNED = 12
"""Events whose plan was never published, so that their messages are orphans."""
EACH_BROKEN = 4
COPIES = 10
"""Every tenth message is published twice."""
FIRST_DAY = datetime(2026, 4, 27, 6, tzinfo=UTC)
TOO_LARGE = 1024 * 1024
"""A body of at least this many bytes is too large."""

EVENT_KINDS: dict[str, list[dict[str, Any]]] = {
    "reminder": [{"text": "Water the plants"}, {"text": "Call Zoë"}, {"text": "Take out the bins"}],
    "poll": [
        {"question": "Where for lunch?", "options": ["Café Olé", "Pho 77", "the usual"]},
        {"question": "Which Friday?", "options": ["1 May", "8 May"], "is_secret": True},
    ],
    "meeting": [{"title": "Stand-up", "minutes": 15}, {"title": "Retro", "minutes": 45.5}],
    "quiz": [{"topic": "Capitals", "questions": 10}, {"topic": "Rivers of 東北", "questions": 5}],
    "countdown": [{"title": "Launch", "silent": False}, {"title": "Holidays 🏖", "silent": True}],
    "checklist": [{"title": "Camping", "entries": {"tent": None, "stove": "Ana", "map": "Ben"}}],
}

# What happens to an event, and how often. `back:x` takes the status back to x, because the
# assistant's turn that had caused it was regenerated.
COURSES = {
    "planned": 12,
    "planned started": 12,
    "planned started completed": 24,
    "planned cancelled": 8,
    "planned expired": 8,
    "planned started cancelled": 6,
    "planned planned started completed": 4,
    "planned started back:planned started completed": 6,
    "planned started completed back:active cancelled": 8,
    "planned started cancelled back:active completed": 6,
    "planned expired back:planned started completed": 6,
    "planned started completed back:active completed back:active expired": 6,
    "planned started completed back:active started back:planned cancelled back:active": 4,
}


@dataclass(frozen=True, slots=True)
class Publication:
    """One message that a chat server sends."""

    chat_id: str
    body: bytes
    reason: str | None = None
    """Why it will be dead-lettered; None for a sound message."""


@dataclass(frozen=True, slots=True)
class Story:
    """What is published, in the order of publishing, and what of it is sound."""

    messages: list[Message]
    """Each sound message once, in the order in which it happened."""
    parts: list[list[Publication]]
    """All messages to send, in random order; one part is sent after the other."""
    copies: int
    """How many messages are sent twice."""

    @property
    def summary(self) -> str:
        """Return what it is about, in two sentences; the second has no full stop yet."""
        return (
            f"The story: {self.events:,} events in {len(self.chats)} chats, "
            f"{len(self.messages):,} messages. They are published in no order,\n{self.copies:,} "
            f"of them twice, among {len(self.broken)} broken ones"
        )

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of the messages, in the same order."""
        return [_body(message) for message in self.messages]

    @property
    def broken(self) -> list[Publication]:
        """Every message that must become a dead letter."""
        return [each for part in self.parts for each in part if each.reason]

    @property
    def chats(self) -> list[str]:
        """The chats that plan anything."""
        plans = (each for each in self.messages if each["kind"] == "event_planned")
        return sorted({each["payload"]["chat_id"] for each in plans})

    @property
    def events(self) -> int:
        """How many events are planned."""
        plans = (each for each in self.messages if each["kind"] == "event_planned")
        return len({each["payload"]["event_id"] for each in plans})


def tell(seed: int, parts: int) -> Story:
    """Return the story of a seed, to be sent in this many parts."""
    rng = Random(seed)
    happened = [step for number in range(1, EVENTS + 1) for step in _event(rng, number)]
    happened.sort(key=lambda step: step[0])
    sequence = count(4_711)
    sound = [
        (chat_id, _message(rng, chat_id, moment, next(sequence), kind, payload))
        for moment, chat_id, kind, payload in happened
    ]
    messages = [message for _, message in sound]
    sent = [Publication(chat_id, _body(message)) for chat_id, message in sound]
    copies = sent[::COPIES]
    broken = [
        Publication(chat_id, breaks(message), reason)
        for breaks, reason in BREAKAGES
        for chat_id, message in (_renewed(rng, *each) for each in _plans(rng, sound))
    ]
    shuffled = sent + copies + broken
    rng.shuffle(shuffled)
    size = -(-len(shuffled) // parts)
    split = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    # Of two contents, the first counts. Sent with the last part, these surely come second.
    first = {each.body for each in split[0]}
    earlier = [(c, message) for c, message in sound if _body(message) in first]
    for chat_id, message in rng.sample(earlier, EACH_BROKEN):
        conflict = Publication(chat_id, _body(_changed(message)), "id_conflict")
        split[-1].insert(rng.randrange(len(split[-1])), conflict)
    return Story(messages, split, len(copies))


Step = tuple[datetime, str, str, dict[str, Any]]


def _event(rng: Random, number: int) -> Iterator[Step]:
    """Yield what happens to one event: when, in which chat, the message's kind and payload."""
    event_id, chat = f"e-{number:04}", rng.randint(1, CHATS)
    (course,) = rng.choices(list(COURSES), weights=list(COURSES.values()))
    moment = FIRST_DAY + timedelta(minutes=rng.randrange(7 * 24 * 60), seconds=rng.randrange(60))
    for step in course.split():
        moment += timedelta(milliseconds=rng.randrange(1, 40 * 60_000))
        kind, payload = _step(rng, step, f"chat-{chat:02}", moment)
        if step != "planned" or number > UNPLANNED:
            yield moment, f"chat-{chat:02}", kind, {"event_id": event_id, **payload}


def _step(rng: Random, step: str, chat_id: str, moment: datetime) -> tuple[str, dict[str, Any]]:
    if step == "planned":
        event_kind = rng.choice(list(EVENT_KINDS))
        payload = {
            "chat_id": chat_id,
            "kind": event_kind,
            "props": rng.choice(EVENT_KINDS[event_kind]),
        }
        if rng.random() < 0.8:
            payload["planned_for"] = _text(moment + timedelta(minutes=rng.randrange(5, 3_000)))
        return "event_planned", payload
    if step == "started":
        return "event_started", {"started_at": _text(moment)}
    if step.startswith("back:"):
        return "event_status_reverted", {"prior_status": step.removeprefix("back:")}
    return f"event_{step}", {"completed_at": _text(moment)}


def _message(
    rng: Random, chat_id: str, moment: datetime, sequence: int, kind: str, payload: dict[str, Any]
) -> Message:
    message = {
        "id": _id(rng, moment),
        "kind": kind,
        "occurred_at": _text(moment),
        "sequence": sequence,
        "payload": payload,
    }
    # Not all chats are served alike: some servers write another time zone, and others do not number
    # their messages, so that only the time tells their order.
    if chat_id.endswith("3"):
        message["occurred_at"] = moment.astimezone(timezone(timedelta(hours=9))).isoformat()
    if chat_id.endswith("7"):
        del message["sequence"]
    return message


def _id(rng: Random, moment: datetime) -> str:
    """Return an id as servers make it: a UUID of version 7, whose first 48 bits are the time."""
    bits = int(moment.timestamp() * 1000) << 80 | rng.getrandbits(80)
    bits = bits & ~(0xF << 76) | 7 << 76
    return str(UUID(int=bits & ~(3 << 62) | 2 << 62))


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _body(message: Message) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode()


def _plans(rng: Random, sound: list[tuple[str, Message]]) -> list[tuple[str, Message]]:
    return rng.sample([each for each in sound if each[1]["kind"] == "event_planned"], EACH_BROKEN)


def _renewed(rng: Random, chat_id: str, message: Message) -> tuple[str, Message]:
    """Return a new message for a new event of the same chat."""
    payload = message["payload"] | {"event_id": f"e-broken-{rng.getrandbits(32):08x}"}
    return chat_id, message | {"id": _id(rng, FIRST_DAY), "payload": payload}


def _changed(message: Message) -> Message:
    """Return a message with the same id and event but another content."""
    return message | {"occurred_at": "2026-05-04T00:00:00Z"}


def _with_props(message: Message, props: dict[str, Any]) -> bytes:
    return _body(message | {"payload": message["payload"] | {"props": props}})


def _truncated(message: Message) -> bytes:
    return _body(message)[:-20]


def _not_a_number(message: Message) -> bytes:
    return _with_props(message, {"score": float("nan")})


def _null_character(message: Message) -> bytes:
    return _with_props(message, {"text": "Water the \0 plants"})


def _unknown_kind(message: Message) -> bytes:
    return _body(message | {"kind": "event_snoozed"})


def _without_id(message: Message) -> bytes:
    return _body({name: value for name, value in message.items() if name != "id"})


def _no_time(message: Message) -> bytes:
    return _body(message | {"occurred_at": "yesterday"})


def _without_chat(message: Message) -> bytes:
    payload = {name: value for name, value in message["payload"].items() if name != "chat_id"}
    return _body(message | {"payload": payload})


def _too_large(message: Message) -> bytes:
    return _with_props(message, {"picture": "A" * TOO_LARGE})


BREAKAGES: list[tuple[Callable[[Message], bytes], str]] = [
    (_truncated, "not_json"),
    (_not_a_number, "not_json"),
    (_null_character, "not_json"),
    (_unknown_kind, "unknown_kind"),
    (_without_id, "bad_envelope"),
    (_no_time, "bad_envelope"),
    (_without_chat, "bad_payload"),
    (_too_large, "too_large"),
]
