"""The store in PostgreSQL; the only code that knows it. Needs `projection-worker[postgres]`."""
