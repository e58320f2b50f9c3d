"""Statements of many events that run together."""

import random
from typing import Any

from tests.builders import message
from tests.places import Place
from tests.unit.notebook import NOTES, TABLE
from tests.unit.projecting import project, rows
from worker import Message, Payload, Transaction
from worker.registry import Registry


def speaking(letter: str) -> Any:
    sql = f"""
        INSERT INTO notes VALUES (:e, '{letter}')
        ON CONFLICT (event_id) DO UPDATE SET text = notes.text ||
    """

    async def spoken(tx: Transaction, message: Message[Payload]) -> None:
        await tx.execute(f"{sql} '{letter}'", {"e": message.event_id})
        if letter == "c":
            await tx.execute(f"{sql} 'd'", {"e": message.event_id})

    return spoken


class TestRegrouping:
    async def test_keeps_the_order_of_each_stream(self, place: Place) -> None:
        """Statements of many streams run together, but each stream's run in order."""
        registry = Registry()
        registry.projection(table="notes", version=1, schema=(TABLE,))
        for letter in "abc":
            registry.on(letter)(speaking(letter))
        random_ = random.Random(7)
        streams = [f"e-{random_.randrange(20):02}" for _ in range(300)]
        batch = [message(random_.choice("abc"), {"event_id": e}) for e in streams]
        spoken: dict[str, str] = {}
        for each in batch:
            event_id = each["payload"]["event_id"]
            spoken[event_id] = spoken.get(event_id, "") + each["kind"].replace("c", "cd")

        await project(place, batch, registry=registry)

        assert rows(place, NOTES) == sorted(spoken.items())
