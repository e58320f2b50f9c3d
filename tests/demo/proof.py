"""The project's claims, compared with the counts. This module only compares."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from tests.demo.broker import DeadLetter
from tests.demo.commands import Answer
from tests.demo.load import Measured
from tests.demo.readmodel import ReadModel
from tests.demo.story import Story
from tests.oracle import COLUMNS, Row, expected_rows

ONGOING = ("planned", "active")


@dataclass(frozen=True, slots=True)
class Ending:
    """Everything that is known when the last worker has ended."""

    measured: Measured
    model: ReadModel
    dead_letters: list[DeadLetter]
    verified: Answer
    """Of `rebuild --verify`."""
    chat_id: str
    listed: list[dict[str, Any]]
    """What `list` prints for that chat."""
    event_id: str
    shown: dict[str, Any]
    """What `show` prints for that event of the chat."""

    @property
    def broken(self) -> int:
        """How many dead letters there are, without second copies."""
        return len({(letter.reason, letter.body) for letter in self.dead_letters})

    @property
    def published_again(self) -> int:
        """How many publishes are neither in the log nor a dead letter, because their twins are."""
        return self.measured.confirmed - len(self.model.log) - self.broken

    @property
    def unreported(self) -> int:
        """How many messages workers settled that were killed before they reported it."""
        return sum(kill.unreported for kill in self.measured.kills)

    @property
    def committed_unacked(self) -> int | None:
        """How many messages were committed but not acked when a worker was killed.

        The next worker found them to be duplicates. None if a killed worker did not report all.
        """
        again = self.measured.reported["duplicate"] - self.published_again
        return None if self.unreported else again


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence, and what contradicts it, if anything."""

    text: str
    differences: tuple[str, ...] = ()


def claims(story: Story, ending: Ending) -> list[Claim]:
    """Compare every claim with the counts."""
    measured, model, verified = ending.measured, ending.model, ending.verified
    expected = expected_rows(story.messages)
    return [
        Claim(
            f"The {len(model.rows):,} rows equal, byte for byte, those of tests/oracle.py, an "
            "independent fold.",
            tuple(rows_differ(model.rows, expected)),
        ),
        Claim(
            "`rebuild --verify` folds the log again and finds the same rows.",
            (f"{verified.printed}{verified.complaint}",) if verified.exit_code else (),
        ),
        Claim(
            f"`list {ending.chat_id}` prints the same events, in the order of planning.",
            tuple(_list_differs(ending, expected)),
        ),
        Claim(
            "The log holds every sound message once, as it was published, and nothing else.",
            tuple(log_differs(story, model)),
        ),
        Claim(
            f"The {len(story.broken)} broken messages, and no others, are dead letters, with the "
            "right reason and body.",
            tuple(dead_letters_differ(story, ending.dead_letters, len(measured.kills))),
        ),
        Claim(
            "The queue is empty; every publish was confirmed, and acked once.",
            tuple(_counts_differ(story, ending)),
        ),
        Claim(
            f"{len(measured.kills)} workers were killed by SIGKILL while they worked; the last "
            "ended on SIGTERM with exit code 0.",
            tuple(_endings_differ(story, measured)),
        ),
    ]


def rows_differ(rows: list[Row], expected: list[Row]) -> Iterator[str]:
    """Yield how the rows differ from the expected ones."""
    found, wanted = ({row[0]: row for row in each} for each in (rows, expected))
    if len(rows) != len(expected):
        yield f"there are {len(rows):,} rows and should be {len(expected):,}"
    for event_id in sorted(found.keys() | wanted.keys()):
        row, right = found.get(event_id), wanted.get(event_id)
        if row is None or right is None:
            yield f"{event_id}: {'no row' if row is None else 'a row that should not be'}"
        elif row != right:
            fields = (
                f"{name} is {is_!r} and should be {should!r}"
                for name, is_, should in zip(COLUMNS, row, right, strict=True)
                if is_ != should
            )
            yield f"{event_id}: {'; '.join(fields)}"


def _list_differs(ending: Ending, expected: list[Row]) -> Iterator[str]:
    events = [dict(zip(COLUMNS, row, strict=True)) for row in expected]
    wanted = [
        {"props": json.loads(event.pop("props_json")), **event}
        for event in sorted(events, key=itemgetter("created_at", "event_id"))
        if event["chat_id"] == ending.chat_id and event["status"] in ONGOING
    ]
    if ending.listed != wanted:
        found, right = ([event["event_id"] for event in each] for each in (ending.listed, wanted))
        yield f"it gives {found} and should give {right}, or their columns differ"


def log_differs(story: Story, model: ReadModel) -> Iterator[str]:
    """Yield how the log differs from the story's sound messages."""
    sound = {
        (message["payload"]["event_id"], message["id"]): body
        for message, body in zip(story.messages, story.bodies, strict=True)
    }
    for key in sorted(sound.keys() | model.log.keys()):
        if model.log.get(key) != sound.get(key):
            stands, is_sound = key in model.log, key in sound
            yield f"message {key[1]} of {key[0]}: in the log: {stands}, sound: {is_sound}"


def dead_letters_differ(story: Story, letters: list[DeadLetter], kills: int) -> Iterator[str]:
    """Yield how the dead letters differ from the story's broken messages."""
    found = Counter((letter.reason, letter.body) for letter in letters)
    wanted = Counter((each.reason or "", each.body) for each in story.broken)
    for key in wanted.keys() - found.keys():
        yield f"no dead letter with reason {key[0]} has the body {_shown(key[1])}"
    for key in found.keys() - wanted.keys():
        yield f"a dead letter with reason {key[0]} has the body {_shown(key[1])}"
    for key, number in found.items():
        # A kill between the confirm of a dead letter and the ack of its message makes a second one
        # (docs/design.md, "What is not promised").
        if number > wanted[key] + kills:
            yield f"{number} dead letters with reason {key[0]} have the body {_shown(key[1])}"


def _counts_differ(story: Story, ending: Ending) -> Iterator[str]:
    measured, published = ending.measured, sum(map(len, story.parts))
    if measured.confirmed != published:
        yield f"{measured.confirmed:,} of {published:,} publishes were confirmed"
    if measured.still_queued:
        yield f"{measured.still_queued:,} messages are in the queue"
    acked = measured.reported.total() + ending.unreported
    if acked != published or any(kill.unreported < 0 for kill in measured.kills):
        yield (
            f"{acked:,} messages were acked and {published:,} published "
            f"({ending.unreported:,} of them not reported by workers that were killed)"
        )
    redelivered = sum(kill.redelivered for kill in measured.kills)
    again = ending.committed_unacked
    if again is not None and not 0 <= again <= redelivered:
        yield (
            f"{measured.reported['duplicate']:,} duplicates were reported, where "
            f"{ending.published_again:,} were published and {redelivered:,} redelivered"
        )


def _endings_differ(story: Story, measured: Measured) -> Iterator[str]:
    for kill in measured.kills:
        if kill.exit_code != -signal.SIGKILL:
            yield f"a worker ended with {kill.exit_code} instead of by SIGKILL"
        if not 0 < kill.in_log < len(story.messages):
            yield f"a worker was killed with {kill.in_log:,} messages in the log"
    if measured.exit_code != 0:
        yield f"the last worker ended with exit code {measured.exit_code}"


def _shown(body: bytes) -> str:
    return repr(body[:80])
