"""What a store promises; `sqlite/` keeps it in a file."""

# Imported before anything that imports sqlite3, because it chooses the copy of SQLite.
from worker.store.sqlite import library

__all__ = ["library"]
