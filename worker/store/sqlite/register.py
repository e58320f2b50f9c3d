"""What went wrong in a transaction of SQLite."""

import sqlite3
from pathlib import Path

from worker.errors import StoreUnusable
from worker.store.failures import Register, StoreFault, out_of_memory
from worker.store.sqlite.faults import casts_doubt, fault, written_by_another


class WrittenByAnother(Exception):
    """Another connection has committed to the file since this one last began a transaction."""


class TransactionEnded(Exception):
    """A handler's statement failed in such a way that SQLite rolled the transaction back."""


class SqliteRegister(Register):
    """Knows SQLite's errors."""

    def __init__(self, path: Path | str) -> None:
        """Begin without failures, for a transaction in this file."""
        super().__init__(f"path {path}")
        self._path = path

    def _store_fault(self, error: Exception) -> StoreFault | None:
        if isinstance(error, WrittenByAnother):
            return written_by_another(self._path)
        if isinstance(error, MemoryError):
            # What Python makes of SQLITE_NOMEM; SQLite may have rolled back by itself.
            return out_of_memory(self._named)
        if isinstance(error, TransactionEnded):
            # Later statements would each commit alone, and the earlier ones are undone.
            return StoreUnusable(
                f"The transaction of the whole batch was ended from within ({error}).",
                "a table or trigger must not use ON CONFLICT ROLLBACK or RAISE(ROLLBACK).",
            )
        if isinstance(error, sqlite3.Error):
            self.casts_doubt = self.casts_doubt or casts_doubt(error)
            return fault(error, self._path)
        return None
