"""What the worker's role must be allowed to do, and the statements that allow it."""

from worker.store.postgres.address import Address
from worker.store.postgres.session import Session
from worker.store.tables import quoted

# A table is dropped and moved by its owner only, and views are the worker's, too.
SCHEMAS = """
    SELECT wanted AS schema, oid IS NOT NULL AS is_there,
        coalesce(has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE'), false)
            AS may_use,
        ARRAY(SELECT relname::text FROM pg_class
            WHERE relnamespace = pg_namespace.oid AND relkind IN ('r', 'v')
                AND NOT pg_has_role(relowner, 'USAGE') ORDER BY relname) AS of_others
    FROM unnest($1::text[]) AS wanted LEFT JOIN pg_namespace ON nspname = wanted
    ORDER BY wanted
"""
DATABASE = """
    SELECT current_database() AS name,
        has_database_privilege(current_database(), 'CREATE') AS may_create,
        has_database_privilege(current_database(), 'TEMPORARY') AS may_try
"""


async def missing_rights(session: Session, address: Address) -> dict[str, str]:
    """Return what the role lacks for a start and a rebuild, each with the statement that cures it.

    Raises the driver's errors.
    """
    role = quoted(session.user)
    lacking: dict[str, str] = {}
    (database,) = await session.ask(DATABASE)
    for found in await session.ask(SCHEMAS, [address.schema, address.rebuild_schema]):
        name = found["schema"]
        if not found["is_there"]:
            if not database["may_create"]:
                made = f"CREATE SCHEMA {quoted(name)} AUTHORIZATION {role};"
                lacking[f"the schema {name}"] = made
        elif not found["may_use"]:
            allowed = f"GRANT USAGE, CREATE ON SCHEMA {quoted(name)} TO {role};"
            lacking[f"the right to create in the schema {name}"] = allowed
        for table in found["of_others"]:
            given = f"ALTER TABLE {quoted(name)}.{quoted(table)} OWNER TO {role};"
            lacking[f"the ownership of {name}.{table}"] = given
    if not database["may_try"]:
        allowed = f"GRANT TEMPORARY ON DATABASE {quoted(database['name'])} TO {role};"
        lacking["the right to try the projections' tables"] = allowed
    return lacking
