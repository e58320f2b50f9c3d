"""What went wrong in a transaction of PostgreSQL."""

from worker.errors import StoreUnavailable, StoreUnusable
from worker.store.failures import Register, StoreFault, out_of_memory
from worker.store.postgres.faults import fault


class PostgresRegister(Register):
    """Knows PostgreSQL's errors."""

    def _store_fault(self, error: Exception) -> StoreFault | None:
        if isinstance(error, StoreUnavailable | StoreUnusable):
            return error
        found = (
            out_of_memory(self._named)
            if isinstance(error, MemoryError)
            else fault(error, self._named)
        )
        # Also after an error that leaves the connection open: a new one costs little, and nobody
        # needs to know what an old one believes.
        self.casts_doubt = self.casts_doubt or found is not None
        return found
