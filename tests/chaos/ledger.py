"""The publisher's own account: what it was about to publish, and what the broker has confirmed.

Written to a file before the publish and after the confirm, so that what is counted at the end does
not rest on anything that the worker or the broker says.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.builders import Message


@dataclass(frozen=True, slots=True)
class Publication:
    """One thing to publish; its copies are equal to it."""

    identity: str
    """Travels as the AMQP message id. Of a sound message: its key in the log."""
    body: bytes
    reason: str | None = None
    """Why it must be dead-lettered; None for a message that is sound."""


class Ledger:
    """The file, and what it says so far."""

    def __init__(self, file: Path) -> None:
        """Begin a new file."""
        self._file = file.open("w")
        self._path = file
        self.reasons: dict[str, str | None] = {}
        """Everything that was attempted, and why it must be dead-lettered, if it must."""
        self.confirmed: set[str] = set()
        self.publishes = 0
        """How often something was attempted, copies included."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def attempt(self, publication: Publication) -> None:
        """Note what is published next; to be called before it is."""
        self.publishes += 1
        is_new = publication.identity not in self.reasons
        body = publication.body.decode() if is_new and publication.reason is None else None
        self._write("attempt", publication.identity, publication.reason, body)
        self.reasons[publication.identity] = publication.reason

    def confirm(self, publication: Publication) -> None:
        """Note what the broker has taken over; to be called after its confirm."""
        self._write("confirm", publication.identity, None, None)
        self.confirmed.add(publication.identity)

    def sound(self) -> Iterator[tuple[str, Message]]:
        """Read the file: every sound message once, in the order of the first attempts."""
        with self._path.open() as lines:
            for line in lines:
                entry = json.loads(line)
                if entry["body"] is not None:
                    yield entry["identity"], json.loads(entry["body"])

    def _write(self, what: str, identity: str, reason: str | None, body: str | None) -> None:
        entry = {"what": what, "identity": identity, "reason": reason, "body": body}
        self._file.write(f"{json.dumps(entry)}\n")
        self._file.flush()


def identity_of(event_id: str, message_id: str) -> str:
    """Give the identity of a sound message."""
    return f"{event_id}/{message_id}"
