"""What is published: endless random histories, among them messages that must be dead-lettered."""

import json
import zlib
from collections.abc import Awaitable, Callable
from random import Random

from tests.builders import Message, body, planned
from tests.chaos.ledger import Publication, identity_of
from tests.deadly import deadly
from tests.histories import histories
from tests.unit.bad_messages import BAD
from worker.deliveries import Reason

# Nesting 10,000 deep makes it larger than most messages; one byte above the limit is too large.
MAX_MESSAGE_BYTES = 100_000
EVENTS_AT_ONCE = 8
# The broker's own reason, because no worker survives to give another.
DELIVERY_LIMIT = "broker: delivery_limit"
HELD_BACK = 0.05
CHATS = 24
# Some publishers take another routing key than the chat of the event, which must be harmless.
ASTRAY = 0.05
REMEMBERED = 2_000


class Traffic:
    """Returns one portion after the other, of about thirty messages each."""

    def __init__(self, rng: Random, in_log: Callable[[str, str], Awaitable[bool]]) -> None:
        """Store `in_log`, which says whether a message is accepted before another takes its id."""
        self._rng = rng
        self._in_log = in_log
        self._portions = 0
        self._bad = sorted(BAD)
        self._held: list[Message] = []
        self._old: list[Message] = []
        self._extra: list[Publication] = []

    async def portion(self) -> list[Publication]:
        """Return what is published next, in this order."""
        rng = self._rng
        self._portions += 1
        # Sometimes the events of an earlier portion go on, at later positions.
        name = rng.randrange(self._portions) if rng.random() < 0.2 else self._portions
        fresh = histories(rng, events=EVENTS_AT_ONCE, name=f"e-{name}")
        held = [message for message in fresh if rng.random() < HELD_BACK]
        late, self._held = self._late(), self._held + held
        again = rng.sample(self._old, min(1, len(self._old)))
        sent = [self._sound(each) for each in fresh if each not in held]
        sent += map(self._sound, late + again)
        sent += await self._broken() + self._extra
        self._extra = []
        rng.shuffle(sent)
        self._old = (self._old + fresh[:3])[-REMEMBERED:]
        return sent

    def poison(self) -> None:
        """Add a message to the next portion that kills each worker of `tests.deadly`."""
        fatal = deadly(f"e-poison-{self._portions}")
        self._extra.append(
            Publication(f"poison {fatal['id']}", body(fatal), DELIVERY_LIMIT, self._any_chat())
        )

    def rest(self) -> list[Publication]:
        """Return everything that is still held back."""
        held, self._held = self._held, []
        return list(map(self._sound, held))

    def _late(self) -> list[Message]:
        """Return some of the messages that were held back, long after their neighbours."""
        count = len(self._held) // 10
        late, self._held = self._held[:count], self._held[count:]
        return late

    async def _broken(self) -> list[Publication]:
        chance = self._rng.random()
        number = f"{self._portions}"
        if chance < 0.4:
            name = self._bad[self._portions % len(self._bad)]
            content, reason, _ = BAD[name]
            raw = content if isinstance(content, bytes) else body(content)
            return [self._broken_one(f"bad {number}: {name}", raw, reason)]
        if chance < 0.45:
            large = body(planned("e-large", more="x" * MAX_MESSAGE_BYTES))
            return [self._broken_one(f"large {number}", large, Reason.TOO_LARGE)]
        if chance < 0.55 and self._old:
            known = self._rng.choice(self._old)
            # Of two contents, the first counts. Only one that is in the log is surely the first.
            if await self._in_log(known["payload"]["event_id"], known["id"]):
                other = body(known | {"more": number})
                return [self._broken_one(f"conflict {number}", other, Reason.ID_CONFLICT)]
        return []

    def _broken_one(self, identity: str, content: bytes, reason: Reason) -> Publication:
        return Publication(identity, content, reason.value, self._any_chat())

    def _sound(self, message: Message) -> Publication:
        event_id = message["payload"]["event_id"]
        is_astray = self._rng.random() < ASTRAY
        chat = self._any_chat() if is_astray else _chat(zlib.crc32(event_id.encode()))
        # As text, not as `body` builds it, so that it can be compared with what the log keeps.
        text = json.dumps(message)
        return Publication(identity_of(event_id, message["id"]), text.encode(), None, chat)

    def _any_chat(self) -> str:
        return _chat(self._rng.randrange(CHATS))


def _chat(number: int) -> str:
    return f"chat-{number % CHATS}"
