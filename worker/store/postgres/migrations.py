"""The schema versions of the worker's own tables, and how a database comes to them.

Several workers may start at the same moment on a database that has no tables yet: one makes them,
and the others find them.
"""

import secrets
from importlib import resources

import asyncpg

from worker.errors import StoreUnusable
from worker.store.postgres.address import Address
from worker.store.postgres.faults import unavailable
from worker.store.postgres.session import Session
from worker.store.statements import Row
from worker.store.tables import quoted

SCRIPTS = ("schema.sql",)
"""A new database runs all of them, each in one transaction."""
SCHEMA_VERSION = len(SCRIPTS)
# Each of them fails if another worker does the same at that moment, and finds it done next time.
ATTEMPTS = 5
RACES = (asyncpg.UniqueViolationError, asyncpg.DuplicateTableError, asyncpg.DuplicateSchemaError)

SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname = ANY ($1::text[])"
RELATIONS = """
    SELECT relname, relname = 'store' AS is_ours FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = $1 AND relkind <> 'i'
    ORDER BY is_ours DESC, relname LIMIT 1
"""
STORE = "SELECT id, schema_version FROM store"
NO_VERSION = "SELECT 0"
VERSION = "SELECT schema_version FROM store"
# Whoever upgrades at the same moment waits here, and finds the new version.
VERSION_LOCKED = f"{VERSION} FOR UPDATE"
IDENTIFY = "INSERT INTO store (id, schema_version) VALUES ($1, 0)"
NOTE = "UPDATE store SET schema_version = $1"


async def prepare(session: Session, address: Address) -> str:
    """Make or upgrade the worker's own tables, and return the id of the database.

    Raises `StoreUnusable` if the role may not make its schemas, and as `identity` does.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            await _make_schemas(session, address)
            await _migrate(session, address)
            break
        except RACES as error:
            if attempt == ATTEMPTS:
                raise unavailable(address.named, error, "other workers start, too.") from error
    return await identity(session, address)


async def identity(session: Session, address: Address) -> str:
    """Return the id of the database, which the worker has made already.

    Raises `StoreUnusable` for a schema without the worker's tables, or with those of a newer one.
    """
    if not await is_ours(session, address):
        raise StoreUnusable(
            f"There is no database of the worker ({address.named}).",
            "start the worker once, which makes it; or correct WORKER_DATABASE or "
            "WORKER_DATABASE_SCHEMA.",
        )
    ((database_id, version),) = await session.ask(STORE)
    _require_known(version, address)
    return str(database_id)


async def schema_version(session: Session) -> int:
    """Return the version of the worker's own tables, which exist."""
    ((version,),) = await session.ask(VERSION)
    return int(version)


async def is_ours(session: Session, address: Address) -> bool:
    """Return whether the schema has the worker's tables."""
    found = await _relation(session, address)
    return found is not None and bool(found["is_ours"])


async def _make_schemas(session: Session, address: Address) -> None:
    wanted = [address.schema, address.rebuild_schema]
    found = {row[0] for row in await session.ask(SCHEMAS, wanted)}
    try:
        for schema in wanted:
            if schema not in found:
                await session.run(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
    except asyncpg.InsufficientPrivilegeError as error:
        statements = " ".join(
            f"CREATE SCHEMA {quoted(schema)} AUTHORIZATION {quoted(session.user)};"
            for schema in wanted
            if schema not in found
        )
        raise StoreUnusable(
            f"The role {session.user!r} may not create the worker's schemas ({address.named}).",
            f"let an administrator run in this database: {statements}",
        ) from error


async def _migrate(session: Session, address: Address) -> None:
    found = await _relation(session, address)
    if found is None:
        await _run(session, NO_VERSION)
        return
    if not found["is_ours"]:
        raise StoreUnusable(
            f"The schema is not the worker's ({address.named}: it has {found['relname']!r}).",
            "set WORKER_DATABASE_SCHEMA to a schema of the worker's own, or to a name that is not "
            "taken.",
        )
    version = await schema_version(session)
    _require_known(version, address)
    if version < SCHEMA_VERSION:
        await _run(session, VERSION_LOCKED)


async def _run(session: Session, version_sql: str) -> None:
    """Run the scripts that this query of the version asks for: all, or none."""
    folder = resources.files("worker.store.postgres")
    await session.run("BEGIN")
    try:
        ((version,),) = await session.ask(version_sql)
        for script in SCRIPTS[version:]:
            await session.run(folder.joinpath(script).read_text())
        if not version:
            await session.ask(IDENTIFY, secrets.token_hex(16))
        await session.ask(NOTE, SCHEMA_VERSION)
        await session.run("COMMIT")
    except asyncpg.PostgresError:
        await session.run("ROLLBACK")
        raise


async def _relation(session: Session, address: Address) -> Row | None:
    rows = await session.ask(RELATIONS, address.schema)
    return rows[0] if rows else None


def _require_known(version: int, address: Address) -> None:
    if version > SCHEMA_VERSION:
        raise StoreUnusable(
            f"The database was made by a newer worker ({address.named}, schema {version}; this "
            f"worker knows {SCHEMA_VERSION}).",
            "run the newer worker, or set WORKER_DATABASE to another database.",
        )
