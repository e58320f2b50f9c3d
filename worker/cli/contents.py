"""What is in a database, as `check` looks at it: whether a start would fold, rebuild or refuse."""

from worker.projections import load
from worker.rebuild import (
    reason_to_rebuild,
    require_known_kinds,
    require_not_older,
    require_same_columns,
    require_schemas,
)
from worker.store.database import Database
from worker.store.findings import Content
from worker.store.store import Store


def content_of(store: Store) -> Content:
    """Return what looks at the content of a store's database."""

    async def look(reader: Database) -> str | None:
        registry = load()
        await require_schemas(reader, registry)
        await reader.require_log()
        await require_known_kinds(reader, registry)
        noted = await reader.noted_versions()
        if store.is_shared:
            require_not_older(noted, registry, reader.named)
        reason = reason_to_rebuild(noted, registry)
        if reason is None:
            await require_same_columns(reader, registry)
        return reason

    return look
