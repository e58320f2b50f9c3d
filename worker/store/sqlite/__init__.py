"""The store in an SQLite file; the only code that knows SQLite."""
