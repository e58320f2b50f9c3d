"""Everything that knows SQLite."""

# Imported before anything that imports sqlite3, because it chooses the copy of SQLite.
from worker.store import library

__all__ = ["library"]
