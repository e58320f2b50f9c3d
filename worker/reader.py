"""Reads from Python, on either store, with one's own writes in them if asked for.

Promise: what is read `after` a message contains that message's effect, on the primary and on any
replica, because the log entry and its effect are one commit. A read waits for it, or raises
`NotYet`; it never returns what is older.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.database_urls import database_url_problem, is_database_url
from worker.errors import NotYet, StoreUnavailable, StoreUnusable
from worker.store.database import Database
from worker.store.engines import store_of
from worker.store.postgres.address import SCHEMA, Address
from worker.store.presence import AT_ONCE, PublishedMessage, missing_of
from worker.store.statements import Parameters, Row

WITHIN_SECONDS = 2.0
MAX_WITHIN_SECONDS = 60.0
# The next look comes when the wait has become half as long again: a wait of two seconds costs the
# database 17 looks, and an answer is late by a third of the wait at most.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, PAUSE = 0.002, 0.25, 0.5


class Reader:
    """A connection that reads a database of the worker; open within `async with`.

    It works while workers write, and when they are stopped; on PostgreSQL also on a replica. Tasks
    may share it: their reads take turns, and waiting for a message takes none. A connection to
    PostgreSQL that was lost is opened again by the next read.
    """

    def __init__(
        self,
        database: str | Path | Address,
        *,
        schema: str = SCHEMA,
        ca_file: Path | None = None,
        allow_plain_text: bool = False,
    ) -> None:
        """Name the database by the path of its file or by its URL; nothing is opened yet.

        The other parameters are for PostgreSQL, and mean what the settings of the worker mean that
        have their names. Raises `StoreUnusable` for a URL that cannot be used.
        """
        if isinstance(database, str):
            database = _named(database, schema, ca_file, allow_plain_text=allow_plain_text)
        self._database = store_of(database).reader()
        self._turn = asyncio.Lock()

    @property
    def database(self) -> Database:
        """The connection itself, for what no projection needs."""
        return self._database

    async def __aenter__(self) -> Self:
        """Open; raises `StoreUnusable` if there is no database of the worker."""
        await self._database.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self._database.__aexit__(exc_type, exc, traceback)

    async def fetch_all(
        self,
        sql: str,
        parameters: Parameters = (),
        *,
        after: Collection[PublishedMessage] = (),
        within: float = WITHIN_SECONDS,
    ) -> list[Row]:
        """Return all rows of a query, with the effects of the messages `after` in them.

        Waits at most `within` seconds (0 to 60) for the messages, at most 100; the time of a read
        itself is not counted. Raises `NotYet` if one has not come by then, `StoreUnavailable` if
        the database cannot be read now (while waiting, only if it still cannot at the end), and
        `StoreUnusable` if it is damaged or lacks what the query asks for.
        """
        if not after:
            async with self._turn:
                return await self._database.fetch_all(sql, parameters)
        if not 0 <= within <= MAX_WITHIN_SECONDS:
            raise ValueError(f"within must be 0 to {MAX_WITHIN_SECONDS:.0f} seconds, not {within}")
        if len(after) > AT_ONCE:
            raise ValueError(f"after may name {AT_ONCE} messages at most, not {len(after)}")
        return await self._fetch_after(sql, parameters, [*dict.fromkeys(after)], within)

    async def _fetch_after(
        self, sql: str, parameters: Parameters, after: Sequence[PublishedMessage], within: float
    ) -> list[Row]:
        started = time.monotonic()
        while True:
            is_last = time.monotonic() - started >= within
            try:
                rows, missing = await self._look(sql, parameters, after)
            except StoreUnavailable:
                if is_last:
                    raise
            else:
                if not missing:
                    return rows
                if is_last:
                    raise self._not_yet(missing, within)
            waited = time.monotonic() - started
            pause = min(max(waited * PAUSE, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(min(pause, max(within - waited, 0)))

    async def _look(
        self, sql: str, parameters: Parameters, after: Sequence[PublishedMessage]
    ) -> tuple[list[Row], list[PublishedMessage]]:
        """Return the rows, or else the messages that are missing, as of one moment."""
        # In one snapshot, because two statements may be answered by two replicas if something
        # between here and the database spreads them.
        async with self._turn, self._database.snapshot() as fetch_all:
            missing = await missing_of(fetch_all, after)
            return ([] if missing else await fetch_all(sql, parameters)), missing

    def _not_yet(self, missing: Sequence[PublishedMessage], within: float) -> NotYet:
        event_id, message_id = missing[0]
        others = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        return NotYet(
            f"The log has no message {message_id!r} of event {event_id!r} yet{others} (waited "
            f"{within:g} seconds; {self._database.named}).",
            "the worker may be behind or stopped ('projection-worker check'), a replica may be "
            "behind its primary, the message may be a dead letter ('projection-worker dead-letters "
            "show ID'), or it was never published under this id.",
            tuple(missing),
        )


def _named(
    text: str, schema: str, ca_file: Path | None, *, allow_plain_text: bool
) -> Path | Address:
    if not is_database_url(text):
        return Path(text)
    if problem := database_url_problem(text):
        raise StoreUnusable(
            f"The address of the database {problem}.",
            "it must look like postgresql://user:password@host:5432/database, or be a path.",
        )
    return Address(text, schema, ca_file, allow_plain_text)
