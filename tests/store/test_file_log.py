from pathlib import Path

from worker.store import log
from worker.store.sqlite import log as queries
from worker.store.sqlite.store import Writer
from worker.store.sqlite.streams import FIND


class TestQueriesOfTheLog:
    async def test_find_by_the_key(self, tmp_path: Path) -> None:
        """The cost of a message does not grow with the log."""
        async with Writer(tmp_path / "p.db") as writer:
            for sql, parameters in (
                (queries.KNOWN, ("[]",)),
                (FIND, ("[]",)),
                (queries.WANTED + queries.SIZES, ("[]", 0)),
                (queries.WANTED + queries.BODIES, ("[]",)),
                (queries.PLACES, (0, 1, *log.BEFORE_ALL, 1)),
                (queries.BODIES_BY_ID, (1, "[]")),
                (queries.HISTORY_BY_ID, (1, "[]")),
            ):
                plan = await writer.fetch_all(f"EXPLAIN QUERY PLAN {sql}", parameters)

                steps = [row["detail"] for row in plan]
                assert any("USING PRIMARY KEY" in step for step in steps)
                assert not any("SCAN log" in step or "SCAN streams" in step for step in steps)
