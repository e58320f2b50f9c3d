"""Everything that knows SQLite."""

# Before anything that imports sqlite3: it chooses which one that is.
from worker.store import library

__all__ = ["library"]
