"""After the last fault is undone: wait until the queue is drained, then check everything."""

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aio_pika.abc import HeadersType

from tests.builders import Message
from tests.chaos.fleet import Fleet
from tests.chaos.ledger import Ledger, identity_of
from tests.chaos.moments import pause
from tests.chaos.verdict import Check, Counts
from tests.chaos.witness import Witness
from tests.oracle import Row, expected_rows
from tests.processes import worker_process
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.waiting import Patience, patience

DRAIN_SECONDS = 300
COMMAND_SECONDS = 600
LOOK_SECONDS = 1.0
# RabbitMQ's lists of a quorum queue may be five seconds old, and are empty after a restart.
STEADY_LOOKS = 8
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that was taken out of the queue or the dead-letter queue."""

    identity: str
    reason: str


async def until_drained(node: RabbitMQNode, queues: Queues) -> str:
    """Wait until nothing is ready or unacked; return what still is if that takes too long."""
    waiting = Patience(DRAIN_SECONDS)
    looks = 0
    while looks < STEADY_LOOKS:
        left = await left_in(node, queues)
        looks = 0 if left else looks + 1
        if waiting.is_over() and left:
            return left
        await pause(LOOK_SECONDS)
    return ""


async def left_in(node: RabbitMQNode, queues: Queues) -> str:
    """Return what is ready or unacked in the workers' queues, or an empty text."""
    found = (await work_queues(node, queues)).values()
    ready, unacked = (sum(numbers) for numbers in zip(*found, strict=True))
    return f"{ready} ready and {unacked} unacked" if ready or unacked else ""


async def work_queues(node: RabbitMQNode, queues: Queues) -> dict[str, tuple[int, int]]:
    """Return how many messages are ready and unacked in each queue that workers consume from."""
    columns = ("name", "messages_ready", "messages_unacknowledged")
    listed = await node.ctl("list_queues", *columns, "--formatter", "json")
    return {
        each["name"]: (each["messages_ready"], each["messages_unacknowledged"])
        for each in json.loads(listed)
        if each["name"].startswith(queues.name) and each["name"] != queues.dead_letters
    }


async def take_all(queues: Queues, name: str) -> list[Letter]:
    """Take everything out of a queue that nobody consumes from."""
    letters = []
    async with queues.channel() as channel:
        queue = await channel.declare_queue(name, passive=True)
        if not (count := queue.declaration_result.message_count):
            return []
        # As a consumer, because a queue with a single active consumer refuses basic.get.
        async with queue.iterator(no_ack=True, timeout=patience()) as messages:
            async for found in messages:
                letters.append(Letter(found.message_id or "", _reason(found.headers)))
                if len(letters) == count:
                    break
    return letters


def _reason(headers: HeadersType) -> str:
    """Return the worker's reason, or else the broker's."""
    own = headers.get("x-reason")
    return str(own) if own else f"broker: {headers.get('x-first-death-reason')!s}"


async def command(fleet: Fleet, folder: Path, *arguments: str) -> tuple[int, str]:
    """Run a command of the worker until it ends, however long the log is."""
    async with worker_process(*arguments, settings=fleet.settings, folder=folder) as process:
        await process.outlives(patience(COMMAND_SECONDS))
        return await process.exit_code(), process.output


@dataclass(frozen=True, slots=True)
class Findings:
    """The database and the queues, compared with the ledger; nobody may write any more."""

    ledger: Ledger
    log: dict[str, str]
    """The body of each message in the log."""
    appends: list[Hashable]
    rows: list[Row]
    damage: str
    dead: list[Letter]
    queued: list[Letter]

    @classmethod
    async def of(
        cls, witness: Witness, ledger: Ledger, dead: list[Letter], queued: list[Letter]
    ) -> Self:
        """Read everything once."""
        return cls(
            ledger=ledger,
            log={identity_of(*key): body for *key, body in await witness.log()},
            appends=await witness.appends(),
            rows=await witness.rows(),
            damage=await witness.damage(),
            dead=dead,
            queued=queued,
        )

    def counts(self) -> Counts:
        """Count what became of every message."""
        return Counts.of(
            attempted=set(self.ledger.reasons),
            confirmed=self.ledger.confirmed,
            applied=set(self.log),
            dead={letter.identity for letter in self.dead},
            queued={letter.identity for letter in self.queued},
            applied_twice=len(self.appends) - len(set(self.appends)),
        )

    def checks(self) -> Iterator[Check]:
        """Compare the log, the rows and the dead letters with what was published."""
        counts = self.counts()
        for name in ("lost", "unexpected", "applied_twice"):
            number = getattr(counts, name)
            yield Check(f"nothing is {name.replace('_', ' ')}", str(number) if number else "")
        sound = dict(self.ledger.sound())
        yield Check("what is in the log was published so, and is sound", some(self._changed(sound)))
        yield Check(
            "the log has as many rows as a trigger has counted appends",
            differ(len(self.log), len(self.appends)),
        )
        accepted = [message for identity, message in sound.items() if identity in self.log]
        yield Check(
            "the rows are those of tests/oracle.py",
            some(_different(self.rows, expected_rows(accepted))),
        )
        yield Check("each dead letter has the right reason", some(self._misjudged()))
        yield Check("the engine finds no damage in its files", self.damage)

    def _changed(self, sound: dict[str, Message]) -> Iterator[str]:
        for identity, body in self.log.items():
            if json.loads(body) != sound.get(identity):
                yield identity

    def _misjudged(self) -> Iterator[str]:
        """Yield dead letters that are sound or have the wrong reason."""
        for letter in self.dead:
            right = self.ledger.reasons.get(letter.identity)
            if right != letter.reason:
                yield f"{letter.identity}: {letter.reason} and not {right}"


def _different(found: list[tuple[object, ...]], right: list[tuple[object, ...]]) -> Iterator[str]:
    yield from (f"is {row}" for row in set(found) - set(right))
    yield from (f"is not {row}" for row in set(right) - set(found))
    if len(found) != len(right):
        yield f"{len(found)} rows, and not {len(right)}"


async def digest(witness: Witness) -> str:
    """Return the hash of all rows."""
    return hashlib.sha256(repr(await witness.rows()).encode()).hexdigest()


def differ(found: object, right: object) -> str:
    """Return what was found and what is expected, or an empty text if they are equal."""
    return "" if found == right else f"{found} and not {right}"


def some(problems: Iterator[str]) -> str:
    """Return the first problems and the number of all."""
    found = list(problems)
    return f"{len(found)}: {'; '.join(found[:SHOWN])}" if found else ""


def by_reason(letters: list[Letter]) -> dict[str, int]:
    """Count dead letters by reason."""
    return dict(Counter(f"dead letters: {letter.reason}" for letter in letters))
