"""The projections' tables as PostgreSQL makes them: tried at the start, and always the same types.

SQLite has tried the same statements before (worker/store/sqlite/schemas.py) and refused what no
store could maintain. What is left to find here is what PostgreSQL does not know, or would store in
another way. A column is kept as a text in the order of its bytes, a 64-bit integer, a 64-bit float
or bytes, so that both stores keep the same values.
"""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg

from worker.errors import StoreUnusable
from worker.store.postgres.address import Address
from worker.store.postgres.session import Session
from worker.store.tables import REMOVAL, Schema, SchemaMistake, quoted

TEMPORARY = "pg_temp"
NAME_BYTES = 63
_KEPT_AS = {
    "smallint": "bigint",
    "integer": "bigint",
    "bigint": "bigint",
    "real": "double precision",
    "double precision": "double precision",
    "text": 'text COLLATE "C"',
    "bytea": "bytea",
}

_COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod),
        a.attcollation = 'pg_catalog."C"'::regcollation,
        coalesce(pg_get_expr(d.adbin, d.adrelid), ''), a.attnotnull,
        coalesce(array_position(k.conkey, a.attnum), 0)
    FROM pg_attribute a
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_constraint k ON k.conrelid = a.attrelid AND k.contype = 'p'
    WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""
_FOREIGN_KEYS = """
    SELECT pg_get_constraintdef(oid) FROM pg_constraint
    WHERE conrelid = to_regclass($1) AND contype = 'f'
"""


# Everything else, such as a full disk, is not the fault of a schema.
_OF_A_SCHEMA = (
    asyncpg.SyntaxOrAccessError,
    asyncpg.DataError,
    asyncpg.FeatureNotSupportedError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.InvalidSchemaNameError,
)
_OF_THE_PLACE = (asyncpg.DuplicateTableError, asyncpg.InsufficientPrivilegeError)


async def create_table(
    session: Session, schema: str, table: str, statements: Sequence[str]
) -> None:
    """Create a table and its indexes in the schema that the search path names first.

    Raises `SchemaMistake` for a table that PostgreSQL cannot create, or that would not keep what
    SQLite keeps. Errors of the driver are raised as they are: a name that is taken, a right that is
    missing, and what no schema is to blame for.
    """
    try:
        for statement in statements:
            await session.run(statement)
        await _normalize(session, schema, table, " ".join(statements))
        # What the worker runs on every table, with the name as it writes it.
        await session.run("EXPLAIN " + REMOVAL.format(table).replace("?", "''"))
    except _OF_THE_PLACE:
        raise
    except _OF_A_SCHEMA as error:
        raise _not_created(table, error) from error


async def _normalize(session: Session, schema: str, table: str, text: str) -> None:
    columns = await _columns(session, schema, table)
    _require_names(table, [name for name, *_ in columns], text)
    changes = []
    for name, declared, is_bytewise, default, *_ in columns:
        kept = _KEPT_AS.get(declared)
        if kept is None:
            raise SchemaMistake(
                table,
                f"has a column of a type that PostgreSQL and SQLite keep differently: {name} "
                f"({declared})",
                "declare it TEXT, BIGINT, DOUBLE PRECISION or BYTEA.",
            )
        if "nextval(" in default:
            raise SchemaMistake(
                table,
                f"has a column that counts by itself: {name}",
                "declare it BIGINT, and let the handlers write what they take from the message.",
            )
        if kept != declared and not is_bytewise:
            changes.append(f"ALTER COLUMN {quoted(name)} TYPE {kept}")
    if changes:
        await session.run(f"ALTER TABLE {qualified(schema, table)} {', '.join(changes)}")
    for (foreign,) in await session.ask(_FOREIGN_KEYS, qualified(schema, table)):
        raise SchemaMistake(
            table,
            f"has a foreign key, which only PostgreSQL would enforce: {foreign}",
            "leave it out: rows of different tables and events must not depend on each other.",
        )


def _require_names(table: str, names: Sequence[str], text: str) -> None:
    """Check that PostgreSQL calls table and columns what SQLite calls them."""
    if len(table) > NAME_BYTES:
        raise SchemaMistake(
            table,
            f"has a name that PostgreSQL would cut at {NAME_BYTES} characters",
            "give it a shorter name.",
        )
    for name in names:
        # An unquoted name is put in lower case, and a long one is cut.
        if not re.search(rf"(?<!\w){re.escape(quoted(name)[1:-1])}(?!\w)", text):
            raise SchemaMistake(
                table,
                f"has a column whose name PostgreSQL changes to {name}",
                f"write its name in lower case, with at most {NAME_BYTES} characters.",
            )


def _not_created(table: str, error: asyncpg.PostgresError) -> SchemaMistake:
    return SchemaMistake(
        table,
        f"cannot be created in PostgreSQL: {error}",
        "correct the schema; docs/extend.md, 'SQL that works on both stores', says what to write.",
    )


@asynccontextmanager
async def trial(session: Session, address: Address, schemas: Schema) -> AsyncIterator[None]:
    """Create all tables as temporary ones, for the block; nothing of them stays.

    Raises `SchemaMistake` for the first table that PostgreSQL cannot create, or that would not keep
    what SQLite keeps, and `StoreUnusable` if the worker may not create temporary tables.
    """
    await session.run("BEGIN READ WRITE")
    try:
        await session.run(f"SET LOCAL search_path = {TEMPORARY}, {quoted(address.schema)}")
        for table, statements in schemas.items():
            try:
                await create_table(session, TEMPORARY, table, statements)
            except asyncpg.DuplicateTableError as error:
                raise _not_created(table, error) from error
            except asyncpg.InsufficientPrivilegeError as error:
                raise not_permitted(error) from error
        yield
    finally:
        if session.is_open:
            await session.run("ROLLBACK")


async def require_schemas(session: Session, address: Address, schemas: Schema) -> None:
    """Raise `SchemaMistake` for the first table that this store could not keep."""
    async with trial(session, address, schemas):
        pass


async def require_columns(session: Session, address: Address, schemas: Schema) -> None:
    """Raise `StoreUnusable` if a table in the database has other columns than its schema."""
    async with trial(session, address, schemas):
        for table in schemas:
            wanted = await _columns(session, TEMPORARY, table)
            if await _columns(session, address.schema, table) != wanted:
                raise StoreUnusable(
                    f"The table {table} has other columns than its schema, and the same version "
                    f"({address.named}).",
                    "raise the version of the projection, so that the table is rebuilt.",
                )


async def column_types(session: Session, schema: str, table: str) -> dict[str, str]:
    """Return name -> type of the columns of a table, in order; empty if there is no table."""
    rows = await _columns(session, schema, table)
    return {name: declared for name, declared, *_ in rows}


async def _columns(
    session: Session, schema: str, table: str
) -> list[tuple[str, str, bool, str, bool, int]]:
    """Return name, type, whether bytes order it, default, NOT NULL, and place in the key."""
    rows = await session.ask(_COLUMNS, qualified(schema, table))
    return [(row[0], row[1], row[2], row[3], row[4], row[5]) for row in rows]


def qualified(schema: str, table: str) -> str:
    """Return the name of a table in a schema, for use in a statement."""
    return f"{quoted(schema)}.{quoted(table)}"


def not_permitted(error: asyncpg.InsufficientPrivilegeError) -> StoreUnusable:
    """Return the error for a role that may not create temporary tables."""
    return StoreUnusable(
        f"The projections' tables cannot be tried ({error}).",
        "let the worker's role create temporary tables (GRANT TEMPORARY ON DATABASE ... TO ...).",
    )
