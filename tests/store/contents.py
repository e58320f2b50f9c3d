"""What a database of either store consists of, and what a rebuild may have left beside it."""

from collections.abc import Sequence
from pathlib import Path

from tests.places import Place, rows

IN_A_FILE = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name"
IN_A_SCHEMA = """
    SELECT CASE relkind WHEN 'i' THEN 'index' WHEN 'v' THEN 'view' ELSE 'table' END, relname,
        CASE relkind WHEN 'i' THEN pg_get_indexdef(oid) ELSE '' END
    FROM pg_class WHERE relnamespace = '{}'::regnamespace AND relkind IN ('r', 'v', 'i')
    ORDER BY relname
"""
TEMPORARY = """
    SELECT 'temporary', relname, '' FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'
"""


def contents(place: Place) -> list[tuple[str, str, str]]:
    """Return type, name and definition of everything in the database."""
    sql = IN_A_FILE if isinstance(place, Path) else IN_A_SCHEMA.format(place.schema)
    return [(kind, name, definition) for kind, name, definition in rows(place, sql)]


def tables(place: Place) -> set[str]:
    return {name for kind, name, _ in contents(place) if kind == "table"}


def leftovers(place: Place) -> Sequence[object]:
    """Return what a rebuild or an audit has left."""
    if isinstance(place, Path):
        return [*place.parent.glob(f"{place.name}.rebuild*")]
    return rows(place, IN_A_SCHEMA.format(place.rebuild_schema)) + rows(place, TEMPORARY)
