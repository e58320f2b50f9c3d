"""The projections' tables in a schema: creating them, and replacing them.

Drops only what a projection created and the log can restore. What others have made for the tables
is kept (rights, and indexes of a table whose version stays), or it keeps the tables from being
replaced: nothing is lost without a word.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from worker.errors import StoreUnavailable, StoreUnusable
from worker.store.postgres.address import Address
from worker.store.postgres.schemas import column_types, create_table, qualified
from worker.store.postgres.session import Session
from worker.store.tables import Schema, quoted, require_names

# Writers read this table first in each transaction, and so wait for whoever changes the tables.
LOCK = "LOCK TABLE projections IN ACCESS EXCLUSIVE MODE"
VERSIONS = "SELECT table_name, version FROM projections"
NOTE = "INSERT INTO projections (table_name, version) VALUES ($1, $2)"
OBJECTS = """
    SELECT c.relname, CASE c.relkind
        WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view' WHEN 'i' THEN 'index'
        WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence' ELSE 'object' END
    FROM pg_class c WHERE c.relnamespace = to_regnamespace($1) AND c.relname = ANY($2)
    ORDER BY c.relname
"""
# What depends on a table and is no part of it: triggers, rules and policies, which change what
# handlers write or readers see, and views, publications and foreign keys of others, which go with
# the table or keep it from being dropped.
HANGING = """
    SELECT t.relname, CASE
        WHEN r.ev_class <> t.oid THEN pg_describe_object('pg_class'::regclass, r.ev_class, 0)
        ELSE pg_describe_object(d.classid, d.objid, 0) END
    FROM pg_class t
    JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
    LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
    LEFT JOIN pg_constraint n ON d.classid = 'pg_constraint'::regclass AND n.oid = d.objid
    WHERE t.relnamespace = to_regnamespace($1) AND t.relname = ANY($2)
        AND d.classid NOT IN ('pg_type'::regclass, 'pg_attrdef'::regclass)
        AND coalesce(c.relkind, 'x') NOT IN ('i', 't') AND c.oid IS DISTINCT FROM t.oid
        AND n.conrelid IS DISTINCT FROM t.oid
    ORDER BY 1, 2
"""
INDEXES = """
    SELECT i.relname, t.relname, pg_get_indexdef(i.oid)
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
    WHERE t.relnamespace = to_regnamespace($1) AND t.relname = ANY($2) ORDER BY i.relname
"""
# Of a table and of its columns; for a table that is not there yet, those that a role gives to every
# table it creates there.
RIGHTS = """
    SELECT t.name, s.attname, a.privilege_type, a.is_grantable,
        CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
    FROM unnest($2::text[]) AS t (name)
    LEFT JOIN pg_class c ON c.relnamespace = to_regnamespace($1) AND c.relname = t.name
    CROSS JOIN LATERAL (
        SELECT NULL AS attname, c.relacl AS acl
        UNION ALL SELECT attname, attacl FROM pg_attribute
            WHERE attrelid = c.oid AND attacl IS NOT NULL AND NOT attisdropped
        UNION ALL SELECT NULL, defaclacl FROM pg_default_acl
            WHERE c.oid IS NULL AND defaclobjtype = 'r'
                AND defaclnamespace IN (0, to_regnamespace($1))
                AND defaclrole = current_user::regrole
    ) AS s
    CROSS JOIN LATERAL aclexplode(s.acl) AS a
    WHERE a.grantee <> coalesce(c.relowner, current_user::regrole)
"""


class _Right(NamedTuple):
    table: str
    column: str | None
    privilege: str
    is_grantable: bool
    role: str


async def require_replaceable(session: Session, address: Address, schema: Schema) -> None:
    """Raise `StoreUnusable` if replacing the tables would drop what no projection created.

    That is a table or the like with the name of a new projection's table, or a trigger, a view or
    the like that belongs to a table.
    """
    old = await noted_versions(session, address)
    new = [table for table in schema if table not in old]
    for name, kind in await session.ask(OBJECTS, quoted(address.schema), new):
        raise in_the_way(address, f"no projection created the {kind} {name}")
    for table, what in await session.ask(HANGING, quoted(address.schema), [*old, *schema]):
        raise StoreUnusable(
            f"The table {table} cannot be replaced while something belongs to it that no "
            f"projection created: {what} ({address.named}).",
            "drop it, and create it again after the rebuild if it only reads; what a trigger, a "
            "rule or a policy does is not what the messages say.",
        )


async def noted_versions(session: Session, address: Address) -> dict[str, int]:
    """Return table -> version, as `Database.noted_versions` does."""
    rows = await session.ask(VERSIONS)
    versions = {row["table_name"]: row["version"] for row in rows}
    require_names(versions, address.named)
    return versions


async def existing(session: Session, address: Address, tables: Collection[str]) -> list[str]:
    """Return those of these tables that the database has, in order."""
    rows = await session.ask(OBJECTS, quoted(address.schema), list(tables))
    return [name for name, kind in rows if kind == "table"]


async def create_tables(
    session: Session, address: Address, schema: Schema, versions: Mapping[str, int]
) -> None:
    """Create the projections' empty tables in a database without messages.

    Several workers may try at once: the first one creates them. Raises `StoreUnavailable` if a
    message has been accepted meanwhile. After an error, the caller closes the session.
    """
    await session.run("BEGIN")
    await session.run(LOCK)
    if await noted_versions(session, address) == versions:
        await session.run("ROLLBACK")
        return
    if await session.ask("SELECT 1 FROM log LIMIT 1"):
        raise StoreUnavailable(
            f"Another worker has begun with other versions of the tables ({address.named}).",
            "nothing: the worker looks again, and rebuilds the tables.",
        )

    async def make() -> None:
        for table, statements in schema.items():
            await create_table(session, address.schema, table, statements)

    await replace_tables(session, address, schema, versions, make)
    await session.run("COMMIT")


async def replace_tables(
    session: Session,
    address: Address,
    schema: Schema,
    versions: Mapping[str, int],
    make: Callable[[], Awaitable[None]],
) -> tuple[str, ...]:
    """Replace the tables that the database has by those that `make` makes, and note the versions.

    The transaction holds `LOCK`; its caller commits. Roles keep their rights. Indexes that somebody
    else created are created again if the version of their table has not changed. Returns the
    statements of all other dropped indexes.

    Raises `StoreUnusable` if something hangs on a table, or if the name of a table or an index is
    taken by something that no projection created.
    """
    old = await noted_versions(session, address)
    await require_replaceable(session, address, schema)
    indexes = await session.ask(INDEXES, quoted(address.schema), list(old))
    rights = await _rights(session, address, schema)
    try:
        for table in sorted({*old, *schema}):
            await session.run(f"DROP TABLE IF EXISTS {qualified(address.schema, table)}")
        await make()
        await _give(session, address, schema, rights)
        there = await _index_names(session, address, schema)
        for name, table, definition in indexes:
            if name not in there and old[table] == versions.get(table):
                await session.run(definition)
    except _OF_AN_OBJECT as error:
        raise _refused(address, error) from error
    await session.run("DELETE FROM projections")
    for table, version in versions.items():
        await session.ask(NOTE, table, version)
    there = await _index_names(session, address, schema)
    return tuple(definition for name, _, definition in indexes if name not in there)


async def _index_names(session: Session, address: Address, tables: Collection[str]) -> set[str]:
    rows = await session.ask(INDEXES, quoted(address.schema), list(tables))
    return {name for name, _, _ in rows}


async def _rights(session: Session, address: Address, tables: Collection[str]) -> Sequence[_Right]:
    """Return the rights that roles other than the owner have on tables."""
    rows = await session.ask(RIGHTS, quoted(address.schema), list(tables))
    return [_Right(*row) for row in rows]


async def _give(
    session: Session, address: Address, tables: Collection[str], rights: Sequence[_Right]
) -> None:
    """Grant exactly these rights, and no others, on tables that were just made."""
    for each in await _rights(session, address, tables):
        await session.run(
            f"REVOKE ALL ON TABLE {qualified(address.schema, each.table)} FROM {each.role}"
        )
    columns = {
        (table, name)
        for table in tables
        for name in await column_types(session, address.schema, table)
    }
    for each in rights:
        if each.column is not None and (each.table, each.column) not in columns:
            continue
        what = each.privilege + (f" ({quoted(each.column)})" if each.column is not None else "")
        await session.run(
            f"GRANT {what} ON TABLE {qualified(address.schema, each.table)} TO {each.role}"
            + (" WITH GRANT OPTION" if each.is_grantable else "")
        )


_OF_AN_OBJECT = (
    asyncpg.SyntaxOrAccessError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DependentObjectsStillExistError,
)


def _refused(address: Address, error: asyncpg.PostgresError) -> StoreUnusable:
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return StoreUnusable(
            f"The projections' tables cannot be replaced ({address.named}): {error}.",
            "let the worker's role own the schema, and the tables in it.",
        )
    detail = getattr(error, "detail", None)
    return in_the_way(address, f"{error}; {detail}" if detail else f"{error}")


def in_the_way(address: Address, what: str) -> StoreUnusable:
    """Return the error for something that others have made in the worker's schemas."""
    return StoreUnusable(
        f"The projections' tables cannot be put in place ({address.named}): {what}.",
        "rename what others created in the schema, or give the projection another name.",
    )
