"""Random histories of events as a faulty network delivers them: out of order and repeated."""

from random import Random
from typing import Any

from tests.builders import Message, message

STATUSES = ("planned", "active", "completed", "cancelled", "expired")
LATER = (
    "event_started", "event_completed", "event_cancelled", "event_expired", "event_status_reverted",
)  # fmt: skip


def histories(rng: Random, *, events: int, name: str = "e") -> list[Message]:
    """Return the messages of many events in random order, about one in five of them twice."""
    once = [each for number in range(events) for each in history(rng, f"{name}-{number}")]
    deliveries = once + rng.sample(once, len(once) // 5)
    rng.shuffle(deliveries)
    return deliveries


def history(rng: Random, event_id: str) -> list[Message]:
    """Return one event's messages; some share a sequence or a time, some have no plan."""
    kinds = rng.choices(LATER, k=rng.randrange(6))
    if rng.random() < 0.9:
        kinds.insert(rng.choice([0, 0, 0, len(kinds)]), "event_planned")
    start = rng.randrange(1_000)
    return [
        message(
            kind,
            _payload(rng, kind, event_id),
            sequence=start + rng.choice([place, place, place // 2]),
            occurred_at=_moment(rng),
        )
        for place, kind in enumerate(kinds)
    ]


def distinct(messages: list[Message]) -> list[tuple[str, str]]:
    """Return (event_id, id) of every message once, in the order of the log's key."""
    return sorted({(each["payload"]["event_id"], each["id"]) for each in messages})


def _payload(rng: Random, kind: str, event_id: str) -> dict[str, Any]:
    match kind:
        case "event_planned":
            of_chat = {"chat_id": f"chat-{rng.randrange(9)}", "kind": "reminder"}
            return {"event_id": event_id, **of_chat, "props": {"n": rng.randrange(100)}}
        case "event_started":
            return {"event_id": event_id, "started_at": _moment(rng)}
        case "event_status_reverted":
            return {"event_id": event_id, "prior_status": rng.choice(STATUSES)}
    return {"event_id": event_id, "completed_at": _moment(rng)}


def _moment(rng: Random) -> str:
    return f"2026-04-27T10:{rng.randrange(60):02}:00{rng.choice(['Z', '+02:00', '.5Z', ''])}"
