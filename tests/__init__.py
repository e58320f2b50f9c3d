# Before a test imports sqlite3: tests and worker use the same SQLite.
import worker.store  # noqa: F401 - it chooses one
