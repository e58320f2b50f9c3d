"""What handlers' statements may do: read any table, and write rows of the projections' tables.

The server plans each text once, and the plan names what it writes.
"""

from collections.abc import Iterator
from typing import Any

import asyncpg

from worker.store.postgres.session import MOST_PREPARED, Session
from worker.store.tables import RESERVED


class Guard:
    """The texts that one session has checked."""

    def __init__(self, session: Session, schema: str) -> None:
        """Allow to write tables in this schema."""
        self._session = session
        self._schema = schema
        self._writes: dict[str, bool] = {}

    def knows(self, sql: str) -> bool:
        """Return whether a text has been checked and may run."""
        return sql in self._writes

    def writes(self, sql: str) -> bool:
        """Return whether a text that is known writes anything."""
        return self._writes[sql]

    async def check(self, sql: str, translated: str) -> None:
        """Prepare a text, and ask the server what it does.

        Raises what the server raises for a text that it cannot prepare, and `ValueError` for one
        that does what it may not do. Either way, the text is not known.
        """
        prepared = await self._session.prepared(translated)
        try:
            (found,) = await prepared.explain(*[None] * len(prepared.get_parameters()))
        except asyncpg.PostgresSyntaxError as error:
            # It could be prepared, but is nothing that has a plan, such as a definition.
            raise _refused(sql) from error
        plan = found["Plan"]
        # What makes a table of a query has the query's plan, and returns nothing.
        changes_nothing_else = _writes(plan) or bool(prepared.get_attributes())
        if not changes_nothing_else or not all(map(self._may_run, _nodes(plan))):
            raise _refused(sql)
        if len(self._writes) >= MOST_PREPARED:
            self._writes.clear()
        self._writes[sql] = any(map(_writes, _nodes(plan)))

    def _may_run(self, node: dict[str, Any]) -> bool:
        if node["Node Type"] == "LockRows":
            # It could wait for another worker that waits for this one.
            return False
        if not _writes(node):
            return True
        targets = node.get("Target Tables", [node])
        return all(
            _is_ours(target.get("Schema", ""), self._schema)
            and target["Relation Name"] not in RESERVED
            for target in targets
        )


def _is_ours(schema: str, own: str) -> bool:
    # What is temporary was made by this session, and so by the worker.
    return schema == own or schema.startswith("pg_temp_")


def _refused(sql: str) -> ValueError:
    return ValueError(
        "A handler's statement may only read, and write rows of tables that are not the worker's "
        f"own: {' '.join(sql.split())}"
    )


def _writes(node: dict[str, Any]) -> bool:
    return bool(node["Node Type"] == "ModifyTable")


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)
