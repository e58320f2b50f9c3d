"""The claims of the demo with several workers, compared with the counts. It only compares."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass

from tests.demo.broker import DeadLetter
from tests.demo.commands import Answer
from tests.demo.proof import Claim, dead_letters_differ, log_differs, rows_differ
from tests.demo.readmodel import ReadModel
from tests.demo.scale.acts import LATER, Measured
from tests.demo.story import Story
from tests.oracle import expected_rows


@dataclass(frozen=True, slots=True)
class Ending:
    """Everything that is known when the last worker has ended."""

    measured: Measured
    model: ReadModel
    dead_letters: list[DeadLetter]
    verified: Answer
    """Of `rebuild --verify`."""


def claims(story: Story, ending: Ending) -> list[Claim]:
    """Compare every claim with the counts."""
    measured, model, verified = ending.measured, ending.model, ending.verified
    return [
        Claim(
            f"The {len(model.rows):,} rows in PostgreSQL equal, byte for byte, those of "
            "tests/oracle.py, an independent fold.",
            tuple(rows_differ(model.rows, expected_rows(story.messages))),
        ),
        Claim(
            "`rebuild --verify` folds the log again and finds the same rows.",
            (f"{verified.printed}{verified.complaint}",) if verified.exit_code else (),
        ),
        Claim(
            "The log holds every sound message once, as it was published, and nothing else.",
            tuple(log_differs(story, model)),
        ),
        Claim(
            f"The {len(story.broken)} broken messages, and no others, are dead letters, with the "
            "right reason and body.",
            tuple(dead_letters_differ(story, ending.dead_letters, len(measured.killed))),
        ),
        Claim(
            f"Every publish was confirmed, and the {LATER} queues are empty.",
            tuple(_counts_differ(story, measured)),
        ),
        Claim(
            f"{' and '.join(measured.killed)} were killed while they worked; the others ended on "
            "SIGTERM with exit code 0.",
            tuple(_endings_differ(story, measured)),
        ),
    ]


def _counts_differ(story: Story, measured: Measured) -> Iterator[str]:
    published = sum(map(len, story.parts))
    if measured.confirmed != published:
        yield f"{measured.confirmed:,} of {published:,} publishes were confirmed"
    if len(measured.left) != LATER:
        yield f"there are {len(measured.left)} queues"
    for name, messages in measured.left.items():
        if messages:
            yield f"{messages:,} messages are in the queue {name}"


def _endings_differ(story: Story, measured: Measured) -> Iterator[str]:
    for name, exit_code in measured.killed.items():
        if exit_code != -signal.SIGKILL:
            yield f"{name} ended with {exit_code} instead of by SIGKILL"
    for name, exit_code in measured.ended.items():
        if exit_code != 0:
            yield f"{name} ended with exit code {exit_code}"
    for in_log in (*measured.killed_at, measured.resized_at):
        if not 0 < in_log < len(story.messages):
            yield f"a worker was killed, or the resize began, with {in_log:,} messages in the log"
