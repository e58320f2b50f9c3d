import pytest

from worker.store.sqlite.schemas import require_schemas
from worker.store.tables import SchemaMistake

NOTES = "CREATE TABLE notes (event_id TEXT PRIMARY KEY, text TEXT)"
OTHER = ("CREATE TABLE other (event_id TEXT PRIMARY KEY, x)", "CREATE INDEX by_x ON other (x)")


def of_columns(columns: str, end: str = "") -> tuple[str, ...]:
    return (f"CREATE TABLE notes ({columns}) {end}",)


def with_default(value: str) -> tuple[str, ...]:
    return of_columns(f"event_id TEXT PRIMARY KEY, x DEFAULT {value}")


def and_then(statement: str) -> tuple[str, ...]:
    return (NOTES, statement)


GOOD = {
    "a key": (NOTES,),
    "in pieces": ("-- Notes\nCREATE TABLE\n notes (event_id TEXT /* id */ UNIQUE) ;",),
    "no rowid": of_columns("event_id TEXT, n INT, PRIMARY KEY (event_id, n)", "WITHOUT ROWID"),
    "strict": of_columns("event_id TEXT PRIMARY KEY, n INT NOT NULL CHECK (n > 0)", "STRICT"),
    "any in strict": of_columns("event_id ANY PRIMARY KEY", "STRICT"),
    "no type": of_columns("event_id PRIMARY KEY, x"),
    "varchar": of_columns("event_id VARCHAR(255) PRIMARY KEY"),
    "quoted": ('CREATE TABLE "notes" ("event_id" TEXT PRIMARY KEY, "order" TEXT, "a""b" TEXT)',),
    "in main": (
        "CREATE TABLE main.notes (event_id TEXT)", "CREATE INDEX main.i ON notes (event_id)",
    ),
    "if not exists": ("CREATE TABLE IF NOT EXISTS notes (event_id TEXT PRIMARY KEY)",),
    "an index": (*of_columns("event_id TEXT, x"), "CREATE INDEX notes_by ON notes (event_id, x)"),
    "a unique index": (
        *of_columns("event_id TEXT, x"), "CREATE UNIQUE INDEX notes_by ON notes (x, event_id)",
        "create index others_by on notes (event_id)",
    ),
    "more indexes": (
        NOTES, "CREATE INDEX upper_ ON notes (upper(text)) WHERE text <> 'ON CONFLICT ROLLBACK'",
        "CREATE INDEX now ON notes (text COLLATE NOCASE)",
    ),
    "a partial index": (
        *of_columns("event_id TEXT"),
        "CREATE INDEX i ON notes (event_id) WHERE event_id IS NOT NULL",
    ),
    "collation of text": of_columns("event_id TEXT PRIMARY KEY, text TEXT COLLATE NOCASE"),
    "a check": of_columns("event_id TEXT PRIMARY KEY, x CHECK (length(x) < 9 AND max(1, x) > 0)"),
    **{
        f"default {value}": with_default(value)
        for value in (
            "0", "-1", "+1.5e-3", "0xFF", "NULL", "(TRUE)", "'now'", "'random()'", "('it''s')",
            '"text"', "x'00ff'",
        )
    },
    "other conflicts": of_columns("event_id TEXT PRIMARY KEY ON CONFLICT REPLACE"),
}  # fmt: skip

BAD = {
    "syntax": (("CREATE TABLE notes (event_id TEXT",), "cannot be created: incomplete input"),
    "nothing": (("",), "other than CREATE TABLE"),
    "a comment": (("-- CREATE TABLE notes (event_id TEXT)",), "other than CREATE TABLE"),
    "null character": (("CREATE TABLE notes (event_id\0 TEXT)",), "cannot be created"),
    "surrogate": (("CREATE TABLE notes (event_id \ud800 TEXT)",), "cannot be created"),
    "parameter": (of_columns("event_id TEXT PRIMARY KEY, x DEFAULT (?)"), "cannot be created"),
    "two in one": ((f"{NOTES}; CREATE INDEX i ON notes (text)",), "one statement at a time"),
    "only an index": (("CREATE INDEX i ON notes (event_id)",), "cannot be created: no such table"),
    "index on the log": (and_then("CREATE INDEX i ON log (kind)"), "creates index i in the file"),
    "index on another": (and_then("CREATE INDEX i ON other (x)"), "creates index i in the file"),
    "index of another": (and_then("CREATE INDEX by_x ON notes (text)"), "by_x already exists"),
    "index as a table": (and_then("CREATE INDEX other ON notes (text)"), "already a table named"),
    "index as one of ours": (and_then("CREATE INDEX Kinds ON notes (text)"), "table named Kinds"),
    "no index made": (
        and_then("CREATE INDEX IF NOT EXISTS by_x ON notes (text)"),
        "other than CREATE TABLE",
    ),
    "no table made": (
        ("CREATE TABLE IF NOT EXISTS other (event_id TEXT)",), "creates nothing",
    ),
    "a trigger": (
        and_then("CREATE TRIGGER t AFTER INSERT ON notes BEGIN DELETE FROM log; END"),
        "CREATE INDEX: CREATE TRIGGER t",
    ),
    "a view": (and_then("CREATE VIEW v AS SELECT * FROM notes"), "other than CREATE TABLE"),
    "a virtual table": (("CREATE VIRTUAL TABLE notes USING fts5 (event_id)",), "other than CREATE"),
    "a temporary table": (("CREATE TEMP TABLE notes (event_id TEXT)",), "other than CREATE TABLE"),
    "a table in temp": (("CREATE TABLE temp.notes (event_id TEXT)",), "creates nothing"),
    "another table": (and_then("CREATE TABLE more (event_id TEXT)"), "creates table more in"),
    "a table of ours": (("CREATE TABLE log (event_id TEXT)",), "table log already exists"),
    "upper case": (("CREATE TABLE Notes (event_id TEXT UNIQUE)",), "creates table Notes in"),
    "drop": (and_then("DROP TABLE log"), "CREATE INDEX: DROP TABLE log"),
    "alter": (and_then("ALTER TABLE notes ADD COLUMN x"), "other than CREATE TABLE"),
    "a row": (and_then("INSERT INTO notes VALUES ('e', '')"), "other than CREATE TABLE"),
    "a pragma": (and_then("PRAGMA user_version = 7"), "other than CREATE TABLE"),
    "rows of the log": (
        ("CREATE TABLE notes AS SELECT event_id FROM messages",), "other than CREATE TABLE",
    ),
    "rows of values": (("CREATE TABLE notes AS /* */ VALUES (1)",), "other than CREATE TABLE"),
    "counted": (
        of_columns("n INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT"),
        "creates table sqlite_sequence in the file",
    ),
    "no event_id": (of_columns("id TEXT PRIMARY KEY, text TEXT"), "has no column event_id"),
    "event_id in capitals": (of_columns("EVENT_ID TEXT PRIMARY KEY"), "has no column event_id"),
    "a number": (of_columns("event_id INTEGER PRIMARY KEY"), "changes or refuses text"),
    "numeric": (of_columns("event_id STRING UNIQUE"), "changes or refuses text"),
    "strict blob": (of_columns("event_id BLOB UNIQUE", "STRICT"), "changes or refuses text"),
    "no index": (of_columns("event_id TEXT, text TEXT"), "searched by event_id"),
    "event_id behind": (
        of_columns("n INT, event_id TEXT, PRIMARY KEY (n, event_id)"), "searched by event_id",
    ),
    "partial index": (
        (*of_columns("event_id TEXT, n INT"), "CREATE INDEX i ON notes (event_id) WHERE n > 0"),
        "searched by event_id",
    ),
    "index of another collation": (
        (*of_columns("event_id TEXT"), "CREATE INDEX i ON notes (event_id COLLATE NOCASE)"),
        "searched by event_id",
    ),
    "collation": (of_columns("event_id TEXT COLLATE NOCASE UNIQUE"), "different ids as equal"),
    "collation of a clustered key": (
        of_columns("event_id TEXT COLLATE RTRIM PRIMARY KEY", "WITHOUT ROWID"), "COLLATE RTRIM",
    ),
    "rowid as key": (
        (
            *of_columns("id INTEGER PRIMARY KEY, event_id TEXT"),
            "CREATE INDEX i ON notes (event_id)",
        ),
        "unique key without event_id: PRIMARY KEY (id)",
    ),
    "key across events": (
        of_columns("event_id TEXT PRIMARY KEY, text TEXT UNIQUE"), "unique key without event_id",
    ),
    "unique index across events": (
        and_then("CREATE UNIQUE INDEX i ON notes (text)"), "unique key without event_id: i",
    ),
    "rollback": (
        of_columns("event_id TEXT PRIMARY KEY ON CONFLICT /* */ rollback"), "ON CONFLICT ROLLBACK",
    ),
    "generated": (
        of_columns("event_id TEXT PRIMARY KEY, x TEXT AS (lower(event_id))"), "generated column",
    ),
    "generated and stored": (
        of_columns("event_id TEXT PRIMARY KEY, x AS (lower(event_id)) STORED"), "generated column",
    ),
    "clock in an index": (
        and_then("CREATE INDEX i ON notes (date(text))"), "uses date, which may differ",
    ),
    "clock in a check": (
        of_columns("event_id TEXT PRIMARY KEY CHECK (event_id <> date('now'))"), "uses date",
    ),
    "chance in a check": (of_columns("event_id TEXT UNIQUE CHECK (random() > 0)"), "uses random"),
    "chance in a generated column": (
        of_columns("event_id TEXT PRIMARY KEY, x AS (unixepoch())"), "uses unixepoch",
    ),
    **{
        f"default {value}": (with_default(value), "has a default for x that is not a literal")
        for value in (
            "CURRENT_TIMESTAMP", "current_date", "(CURRENT_TIME)", "(datetime('now'))",
            "(random())", "(lower(hex(randomblob(16))))", "(strftime('%s'))", "(1 + julianday())",
            "(last_insert_rowid())", "(json_array())", "(coalesce(NULL, Unixepoch('subsec')))",
            "(1 + 1)", "nowhere",
        )
    },
}  # fmt: skip


class TestSchemas:
    """The tables of two projections, of which one is always correct."""

    @pytest.mark.parametrize("schema", GOOD.values(), ids=GOOD)
    def test_that_can_be_kept_are_accepted(self, schema: tuple[str, ...]) -> None:
        """A schema may use whatever SQLite offers for one table and its indexes."""
        require_schemas({"notes": schema, "other": OTHER})

    @pytest.mark.parametrize(("schema", "found"), BAD.values(), ids=BAD)
    def test_with_a_mistake_are_refused(self, schema: tuple[str, ...], found: str) -> None:
        """The error names the table and the mistake; the hint says what to do."""
        with pytest.raises(SchemaMistake) as refused:
            require_schemas({"other": OTHER, "notes": schema})

        assert refused.value.table == "notes"
        assert str(refused.value).startswith("Table 'notes' ")
        assert found in str(refused.value)
        assert refused.value.hint

    @pytest.mark.parametrize("name", ["order", "table", "select", "values"])
    def test_with_a_word_of_sql_as_a_name_are_refused(self, name: str) -> None:
        """Quoting the name in the schema does not help, because the worker does not quote it."""
        with pytest.raises(SchemaMistake, match="a name that is an SQL keyword"):
            require_schemas({name: (f'CREATE TABLE "{name}" (event_id TEXT PRIMARY KEY)',)})

    @pytest.mark.parametrize(
        "name", ["t", "trial", "live", "fresh", "temp", "main", "wanted", "pair"]
    )
    def test_may_have_any_other_name(self, name: str) -> None:
        """Aliases in the worker's own statements hide no table."""
        require_schemas({name: (f"CREATE TABLE {name} (event_id TEXT PRIMARY KEY)",)})
