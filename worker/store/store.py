"""A database of the worker, before it is opened: what can be done with it."""

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

from worker.store.database import Reader, Writer
from worker.store.findings import Content, Finding
from worker.store.fresh_tables import FreshTables
from worker.store.tables import Schema


class Lock(AbstractContextManager["Lock"], Protocol):
    """The right to write a database, where only one process may have it."""

    def acquire(self) -> None:
        """Take the lock, or raise `WriterLocked`, which names the process that holds it."""

    def release(self) -> None:
        """Let another process take the lock; releasing it twice is harmless."""


class Store(ABC):
    """A database that the settings name."""

    named: str
    """What errors call it."""
    is_shared: bool
    """Whether several workers may write it at the same time."""

    @abstractmethod
    def lock(self) -> Lock:
        """Return the lock of its writer; nothing is locked yet."""

    @abstractmethod
    def writer(self, lock: Lock) -> Writer:
        """Return a writer, which is not open yet; the caller has acquired the lock."""

    @abstractmethod
    def reader(self) -> Reader:
        """Return a connection that can only read, and is not open yet.

        It works while workers write, and when they are stopped. Opening it raises `StoreUnusable`
        if there is no database, or it is not ours.
        """

    @abstractmethod
    def auditing(self, schema: Schema) -> AbstractAsyncContextManager[FreshTables]:
        """Return empty tables that are only compared with the live ones, on one snapshot."""

    @abstractmethod
    async def exists(self) -> bool:
        """Return whether a worker has made it already."""

    @abstractmethod
    async def examine(self, content: Content) -> list[Finding]:
        """Return whether everything about the database is as the worker needs it; change nothing.

        `content` looks at what is in it.
        """

    async def id(self) -> str | None:
        """Return the id that identifies the database; None if it does not exist yet.

        Raises what opening a reader raises.
        """
        if not await self.exists():
            return None
        async with self.reader() as reader:
            return await reader.id()
