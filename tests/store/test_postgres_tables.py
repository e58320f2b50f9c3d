"""What others have made for the tables in PostgreSQL, and what it takes for equal."""

import secrets

import pytest

from tests.builders import message
from tests.places import change, rows, writer_at
from tests.postgres import PostgresDatabase
from tests.store.contents import contents
from tests.store.test_versions import notes, rebuilt, say
from tests.unit.projecting import audited, project
from worker import Message, Payload, Transaction
from worker.errors import StoreUnusable
from worker.registry import Registry
from worker.store.postgres.address import Address

NOTES = "SELECT * FROM notes ORDER BY event_id"
RIGHTS = """
    SELECT a.grantee::regrole::text, a.privilege_type, a.is_grantable
    FROM pg_class, aclexplode(relacl) AS a
    WHERE pg_class.oid = 'notes'::regclass AND a.grantee <> relowner ORDER BY 1, 2
"""
COLUMN_RIGHTS = """
    SELECT attname, attacl::text FROM pg_attribute
    WHERE attrelid = 'notes'::regclass AND attacl IS NOT NULL
"""
VERSIONS = [notes(1), notes(2, column="more")]


@pytest.fixture
async def role(shared_database: PostgresDatabase) -> str:
    """Return a role that has no rights yet."""
    name = f"reader_{secrets.token_hex(4)}"
    await shared_database.query(f"CREATE ROLE {name}")
    return name


class TestRights:
    @pytest.mark.parametrize("registry", VERSIONS, ids=["same version", "another version"])
    async def test_outlive_a_rebuild(self, address: Address, role: str, registry: Registry) -> None:
        """Roles may read what they could read before, and nothing else."""
        await project(address, [say("e")], registry=notes(1))
        change(address, f"GRANT SELECT, REFERENCES ON notes TO {role} WITH GRANT OPTION")
        change(address, "GRANT SELECT ON notes TO PUBLIC")
        change(address, f"GRANT UPDATE (text) ON notes TO {role}")
        change(address, f"ALTER DEFAULT PRIVILEGES GRANT TRUNCATE ON TABLES TO {role}")
        before = rows(address, RIGHTS), rows(address, COLUMN_RIGHTS)
        assert len(before[0]) == 3

        try:
            await rebuilt(address, registry)
        finally:
            change(address, f"ALTER DEFAULT PRIVILEGES REVOKE TRUNCATE ON TABLES FROM {role}")

        assert (rows(address, RIGHTS), rows(address, COLUMN_RIGHTS)) == before

    @pytest.mark.parametrize("where", ["", "IN SCHEMA {}"], ids=["anywhere", "in its schema"])
    async def test_on_a_new_table_are_those_that_a_role_gives(
        self, address: Address, role: str, where: str
    ) -> None:
        """Also if the table was made in the schema of the rebuild."""
        await project(address, [say("e")], registry=notes(1))
        change(address, "DROP TABLE notes; DELETE FROM projections")
        default = f"ALTER DEFAULT PRIVILEGES {where.format(address.schema)}"
        change(address, f"{default} GRANT SELECT ON TABLES TO {role}")

        try:
            await rebuilt(address, notes(1))
        finally:
            change(address, f"{default} REVOKE SELECT ON TABLES FROM {role}")

        assert rows(address, RIGHTS) == [(role, "SELECT", False)]

    async def test_on_a_column_that_is_gone_go_with_it(self, address: Address, role: str) -> None:
        """They keep no rebuild from its end."""
        await project(address, [say("e")], registry=notes(1, column="more"))
        change(address, f"GRANT SELECT (more, text) ON notes TO {role}")

        await rebuilt(address, notes(2))

        assert [name for name, _ in rows(address, COLUMN_RIGHTS)] == ["text"]

    async def test_of_the_owner_are_needed(
        self, address: Address, shared_database: PostgresDatabase
    ) -> None:
        """A table that an administrator has taken, with its schema, is not replaced."""
        await project(address, [say("e")], registry=notes(1))
        for what in (f"SCHEMA {address.schema}", f"TABLE {address.schema}.notes"):
            await shared_database.query(f"ALTER {what} OWNER TO postgres")
            await shared_database.query(f"GRANT ALL ON {what} TO PUBLIC")

        with pytest.raises(StoreUnusable, match="must be owner of table notes") as refused:
            await rebuilt(address, notes(1))

        assert "own the schema" in refused.value.hint
        assert rows(address, NOTES) == [("e", "x")]


HANGING = {
    "view": ("CREATE VIEW mine AS SELECT text FROM notes", "view mine"),
    "materialized view": (
        "CREATE MATERIALIZED VIEW mine AS SELECT text FROM notes", "materialized view mine",
    ),
    "rule": ("CREATE RULE mine AS ON UPDATE TO notes DO INSTEAD NOTHING", "rule mine on table"),
    "policy": ("CREATE POLICY mine ON notes USING (true)", "policy mine on table"),
    "foreign key": (
        "CREATE TABLE mine (of TEXT REFERENCES notes (event_id))", "constraint mine_of_fkey",
    ),
    "statistics": ("CREATE STATISTICS mine ON event_id, text FROM notes", "statistics object mine"),
    "child": ("CREATE TABLE mine () INHERITS (notes)", "table mine"),
}  # fmt: skip


class TestWhatHangsOnATable:
    @pytest.mark.parametrize("registry", VERSIONS, ids=["same version", "another version"])
    @pytest.mark.parametrize(("sql", "found"), HANGING.values(), ids=HANGING)
    async def test_is_named_and_kept(
        self, address: Address, sql: str, found: str, registry: Registry
    ) -> None:
        """It would be lost with the table, so somebody has to decide; nothing is folded before."""
        await project(address, [say("e")], registry=notes(1))
        change(address, sql)
        before = contents(address)

        schema = {each.table: each.schema for each in registry.projections}
        async with writer_at(address) as writer:
            fresh = await writer.rebuilding(schema)
            with pytest.raises(StoreUnusable, match="table notes cannot be replaced") as refused:
                await fresh.__aenter__()

        assert found in refused.value.message.replace(f"{address.schema}.", "")
        assert contents(address) == before

    async def test_is_named_by_a_start(self, address: Address) -> None:
        """The tables of a new database are replaced without a rebuild."""
        await project(address, registry=notes(1))
        change(address, "CREATE POLICY mine ON notes USING (true)")
        async with writer_at(address) as writer:
            with pytest.raises(StoreUnusable, match="policy mine"):
                await writer.create_tables({}, {})


class Kept(Payload):
    """What one row says."""

    text: str | None = None
    number: int | None = None
    real: float | None = None
    data: str | None = None


def kept(key: str = "event_id TEXT PRIMARY KEY") -> Registry:
    """Return a registry with a column of each type."""
    registry = Registry()
    columns = f"{key}, text TEXT, number BIGINT, real DOUBLE PRECISION, data BYTEA"
    table = (f"CREATE TABLE kept ({columns})", "CREATE INDEX kept_by ON kept (event_id)")
    registry.projection(table="kept", version=1, schema=table)

    @registry.on("said")
    async def said(tx: Transaction, message: Message[Kept]) -> None:
        it = message.payload
        data = None if it.data is None else bytes.fromhex(it.data)
        sql = "INSERT INTO kept VALUES (?, ?, ?, ?, ?)"
        await tx.execute(sql, (message.event_id, it.text, it.number, it.real, data))

    return registry


ALTERED = {
    "composed text": "UPDATE kept SET text = 'e' || U&'\\0301'",
    "an empty text": "UPDATE kept SET text = ''",
    "minus zero": "UPDATE kept SET real = '-0'",
    "the last bit": "UPDATE kept SET number = number + 1",
    "a byte": "UPDATE kept SET data = data || '\\x00'",
    "NULL": "UPDATE kept SET data = NULL",
    "a missing row": "DELETE FROM kept",
    "a row twice": "INSERT INTO kept SELECT * FROM kept",
    "another row": "INSERT INTO kept SELECT event_id, 'x' FROM kept",
    "a row of nobody": "UPDATE kept SET event_id = 'f'",
    "the order of columns": "ALTER TABLE kept DROP data; ALTER TABLE kept DROP real;"
    "ALTER TABLE kept ADD data BYTEA; ALTER TABLE kept ADD real DOUBLE PRECISION;"
    "UPDATE kept SET data = '\\x00', real = 0",
    "no table": "DROP TABLE kept",
}


class TestAnAudit:
    @pytest.mark.parametrize("sql", ALTERED.values(), ids=ALTERED)
    async def test_sees_every_byte(self, address: Address, sql: str) -> None:
        """What PostgreSQL takes for equal is found, and a rebuild corrects it."""
        registry = kept("event_id TEXT NOT NULL")
        whole = {"text": "\u00e9", "number": 2**53, "real": 0.0, "data": "00"}
        await project(address, [message("said", {"event_id": "e", **whole})], registry=registry)
        before = rows(address, "SELECT * FROM kept")
        assert (await audited(address, registry)).differing == 0

        change(address, sql)

        assert (await audited(address, registry)).differing == (2 if "'f'" in sql else 1)
        await rebuilt(address, registry)
        assert list(map(repr, rows(address, "SELECT * FROM kept"))) == list(map(repr, before))
