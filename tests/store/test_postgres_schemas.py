"""What PostgreSQL is asked about a schema that SQLite has accepted (test_schemas.py)."""

import pytest

from tests.places import reader_at, rows, writer_at
from tests.postgres import PostgresDatabase
from tests.store.contents import leftovers
from worker.errors import RegistrationError, StoreUnusable
from worker.rebuild import create_tables, require_same_columns, require_schemas
from worker.registry import Registry
from worker.store.postgres.address import Address

COLUMNS = """
    SELECT attname, format_type(atttypid, atttypmod), attcollation::regcollation::text
    FROM pg_attribute WHERE attrelid = 'notes'::regclass AND attnum > 0 ORDER BY attnum
"""
KEYS = "SELECT DISTINCT indcollation::text FROM pg_index WHERE indrelid = 'notes'::regclass"
BYTEWISE = "SELECT oid::text FROM pg_collation WHERE collname = 'C'"


def notes(*more: str, start: str = "event_id TEXT PRIMARY KEY", indexes: str = "") -> Registry:
    """Return a registry with a table of these columns, which SQLite has accepted."""
    registry = Registry()
    table = f"CREATE TABLE notes ({', '.join((start, *more))})"
    registry.projection(table="notes", version=1, schema=(table, *filter(None, [indexes])))
    registry.require_schemas()
    return registry


GOOD = {
    "every type": notes("a SMALLINT", "b INTEGER", "c REAL", "d DOUBLE PRECISION", "e BYTEA"),
    "defaults": notes("a BIGINT DEFAULT -1", "b TEXT DEFAULT 'it''s'", "c REAL NOT NULL DEFAULT 1"),
    "a check": notes("a BIGINT CHECK (a > 0 AND length(event_id) < 9)"),
    "a quoted name": notes('"Order" TEXT', '"a""b" TEXT'),
    "a partial index": notes("a TEXT", indexes="CREATE INDEX i ON notes (a) WHERE a <> 'x'"),
    "an expression": notes("a TEXT", indexes="CREATE INDEX i ON notes (upper(a), event_id)"),
    "two keys": notes("a TEXT", "UNIQUE (a, event_id)"),
}
BAD = {
    "no type": (notes("a"), 'syntax error at or near ")"'),
    "VARCHAR": (notes("a VARCHAR(9)"), "keep differently: a (character varying(9))"),
    "NUMERIC": (notes("a NUMERIC"), "keep differently: a (numeric)"),
    "BOOLEAN": (notes("a BOOLEAN"), "keep differently: a (boolean)"),
    "TIMESTAMP": (notes("a TIMESTAMP"), "keep differently: a (timestamp without time zone)"),
    "an array": (notes("a TEXT[]"), "keep differently: a (text[])"),
    "BLOB": (notes("a BLOB"), 'type "blob" does not exist'),
    "SERIAL": (notes("a SERIAL"), "has a column that counts by itself: a"),
    "a name in capitals": (notes("startedAt TEXT"), "PostgreSQL changes to startedat"),
    "a long name": (notes(f"{'a' * 64} TEXT"), f"PostgreSQL changes to {'a' * 63}"),
    "a foreign key": (notes("a TEXT REFERENCES notes (event_id)"), "has a foreign key"),
    "STRICT": (notes(start="event_id TEXT PRIMARY KEY) STRICT --"), 'at or near "STRICT"'),
    "a collation": (notes("a TEXT COLLATE NOCASE"), 'collation "nocase"'),
    "a conflict": (notes(start="event_id TEXT PRIMARY KEY ON CONFLICT IGNORE"), 'near "ON"'),
    "a default of another type": (notes("a BIGINT DEFAULT TRUE"), "is of type bigint but"),
}


class TestTrial:
    """PostgreSQL tries the tables before anything is consumed."""

    @pytest.mark.parametrize("registry", GOOD.values(), ids=GOOD)
    async def test_accepts_what_both_keep(self, address: Address, registry: Registry) -> None:
        """Nothing of the trial stays."""
        async with writer_at(address) as writer:
            await require_schemas(writer, registry)

            assert rows(address, "SELECT to_regclass('notes')") == [(None,)]
            assert not leftovers(address)

    @pytest.mark.parametrize(("registry", "found"), BAD.values(), ids=BAD)
    async def test_refuses_what_only_sqlite_keeps(
        self, address: Address, registry: Registry, found: str
    ) -> None:
        """The error names the table, what is wrong, where it is registered, and what to write."""
        async with writer_at(address) as writer:
            with pytest.raises(RegistrationError) as refused:
                await require_schemas(writer, registry)
            assert await writer.noted_versions() == {}

        assert refused.value.message.startswith("Table 'notes' ")
        assert found in refused.value.message
        assert __file__ in refused.value.message
        assert refused.value.hint

    @pytest.mark.parametrize("name", ["user", "t" * 64])
    async def test_refuses_a_name_that_the_worker_could_not_use(
        self, address: Address, name: str
    ) -> None:
        """The worker writes the name without quotes, and in full."""
        registry = Registry()
        schema = (f'CREATE TABLE "{name}" (event_id TEXT PRIMARY KEY)',)
        registry.projection(table=name, version=1, schema=schema)
        async with writer_at(address) as writer:
            with pytest.raises(RegistrationError, match=f"Table '{name}'"):
                await require_schemas(writer, registry)

    async def test_says_which_right_it_needs(
        self, address: Address, shared_database: PostgresDatabase
    ) -> None:
        """Temporary tables are a right of their own."""
        async with writer_at(address):
            pass
        name = shared_database.name
        await shared_database.query(f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC, {name}")
        try:
            async with reader_at(address) as reader:
                with pytest.raises(StoreUnusable, match="permission denied") as refused:
                    await require_schemas(reader, GOOD["a check"])
        finally:
            await shared_database.query(f"GRANT TEMPORARY ON DATABASE {name} TO {name}")

        assert "GRANT TEMPORARY" in refused.value.hint


class TestTables:
    async def test_have_four_types_and_the_order_of_bytes(self, address: Address) -> None:
        """Whatever the schema calls them, and whatever the database's own collation is."""
        registry = GOOD["every type"]
        registry.require_schemas()
        async with writer_at(address) as writer:
            await create_tables(writer, registry)

        assert rows(address, COLUMNS) == [
            ("event_id", "text", '"C"'),
            ("a", "bigint", "-"),
            ("b", "bigint", "-"),
            ("c", "double precision", "-"),
            ("d", "double precision", "-"),
            ("e", "bytea", "-"),
        ]
        assert rows(address, KEYS) == rows(address, BYTEWISE)

    @pytest.mark.parametrize("end", ["ALTER a TYPE text USING 'x'", "ALTER a SET DEFAULT 7",
                                     "ALTER a SET NOT NULL", "RENAME a TO b", "ADD b TEXT",
                                     'ALTER event_id TYPE text COLLATE "en-US-x-icu"'])  # fmt: skip
    async def test_must_not_change_without_their_version(self, address: Address, end: str) -> None:
        """A table that differs from its schema is found at the start, by readers as well."""
        async with writer_at(address) as writer:
            await create_tables(writer, GOOD["a check"])
            await require_same_columns(writer, GOOD["a check"])
            rows(address, "ALTER TABLE notes DROP CONSTRAINT notes_check")
            rows(address, f"ALTER TABLE notes {end}")
            with pytest.raises(StoreUnusable, match="table notes has other columns"):
                await require_same_columns(writer, GOOD["a check"])
        async with reader_at(address) as reader:
            with pytest.raises(StoreUnusable, match="table notes has other columns"):
                await require_same_columns(reader, GOOD["a check"])
