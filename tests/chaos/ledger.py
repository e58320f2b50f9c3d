"""The publisher's own record of what it attempts to publish, and what the broker has confirmed.

It is written to a file before each publish and after each confirm, so that the final count does not
rely on anything that the worker or the broker says.
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
    """One message to publish; its copies are equal to it."""

    identity: str
    """The AMQP message id. For a sound message, it is its key in the log."""
    body: bytes
    reason: str | None = None
    """Why it must be dead-lettered; None for a sound message."""
    routing_key: str = "chat-1"


class Ledger:
    """The file, and its totals so far."""

    def __init__(self, file: Path) -> None:
        """Begin a new file."""
        self._file = file.open("w")
        self._path = file
        self.reasons: dict[str, str | None] = {}
        """Every attempted message, with the reason why it must be dead-lettered, if any."""
        self.confirmed: set[str] = set()
        self.publishes = 0
        """The number of attempts, including copies."""

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
        """Record what is published next; call it before the publish."""
        self.publishes += 1
        is_new = publication.identity not in self.reasons
        body = publication.body.decode() if is_new and publication.reason is None else None
        self._write("attempt", publication.identity, publication.reason, body)
        self.reasons[publication.identity] = publication.reason

    def confirm(self, publication: Publication) -> None:
        """Record what the broker has confirmed; call it after the confirm."""
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
    """Return the identity of a sound message."""
    return f"{event_id}/{message_id}"
