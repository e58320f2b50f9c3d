from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from asyncpg import connect_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.database_urls import database_shown, database_url_problem, is_database_url
from worker.settings import Settings, load_settings
from worker.sources import SettingsError
from worker.store.postgres.address import Address

# Split, so that no file contains what looks like a credential.
PASSWORD = "-".join(["s3cret", "s3cret"])
URL = f"postgresql://worker:{PASSWORD}@db.example:5433/chats"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start in an empty folder without any settings."""
    for name in [*Settings.model_fields, "secrets_dir"]:
        monkeypatch.delenv(f"WORKER_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


def refused(monkeypatch: pytest.MonkeyPatch, **variables: Any) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(f"WORKER_{name.upper()}", str(value))
    with pytest.raises(SettingsError) as error:
        load_settings()
    return str(error.value)


class TestTheDatabase:
    @pytest.mark.parametrize(
        "path", ["p.db", "./a:b@c.db", "/tmp/a://b.db", "folder/p.db", "host=x.db", "a@b.db"]
    )
    def test_is_a_file_if_it_is_named_by_a_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
    ) -> None:
        """Whatever characters it has; one that begins with a slash or a dot is never a URL."""
        monkeypatch.setenv("WORKER_DATABASE", path)

        settings = load_settings()

        assert settings.store == settings.database == (tmp_path / path).resolve()
        assert settings.shown_database == str(settings.store)

    def test_is_a_schema_if_it_is_named_by_a_url(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What shows it shows neither the user nor the password."""
        for name, value in {
            "database": URL, "database_schema": "chats_2", "database_ca_file": "ca.pem",
            "database_allow_plain_text": "yes",
        }.items():  # fmt: skip
            monkeypatch.setenv(f"WORKER_{name.upper()}", value)

        settings = load_settings()

        address = Address(URL, "chats_2", Path("ca.pem"), allow_plain_text=True)
        assert settings.store == address
        assert settings.shown_database == "postgresql://db.example:5433/chats"
        assert PASSWORD not in repr(settings) + str(settings) + repr(address)

    def test_may_be_in_a_secret_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its password then is in no environment."""
        (tmp_path / "worker_database").write_text(f"{URL}\n")
        monkeypatch.setenv("WORKER_SECRETS_DIR", str(tmp_path))

        assert load_settings().store == Address(URL)

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("postgres://u:{}@a:1,b/chats", "postgresql://a:1,b/chats"),
            ("postgresql://u:{}@[::1]:5/c", "postgresql://[::1]:5/c"),
            (
                "postgresql://u:{}@/c?host=/run/postgresql&port=5",
                "postgresql:///c?host=/run/postgresql&port=5",
            ),
        ],
    )
    def test_is_shown_with_its_hosts(
        self, monkeypatch: pytest.MonkeyPatch, url: str, shown: str
    ) -> None:
        """A cluster has several; a Unix socket is a folder."""
        monkeypatch.setenv("WORKER_DATABASE", url.format(PASSWORD))

        assert load_settings().shown_database == shown

    @pytest.mark.parametrize(
        "schema", ["Chats", "pg_chats", "information_schema", "1st", "a-b", "ä", "x" * 56, 'a"b']
    )
    def test_schema_is_a_plain_name(self, monkeypatch: pytest.MonkeyPatch, schema: str) -> None:
        """It needs no quotes anywhere, and leaves room for what a rebuild appends."""
        sentence = refused(monkeypatch, database_schema=schema)

        assert "WORKER_DATABASE_SCHEMA: " in sentence


class TestAnAddress:
    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("postgresql://u:{}@x@host/c", "a raw @ in the user or password; write %40"),
            ("postgresql://u:{}/x@host/c", "a raw / in the user or password"),
            ("postgresql://u:{}?x@host/c", "a raw ? in the user or password; write %3F"),
            ("postgresql://u:{}#x@host/c", "a raw # in the user or password; write %23"),
            ("postgresql://u:{}%x@host/c", "a % in the user or password"),
            ("postgresql://u:{}%ff@host/c", "escapes in the user or password that are not UTF-8"),
            ("postgresql://u:{} x@host/c", "has a space in it"),
            ("'postgresql://u:{}@host/c'", "quotes around it"),
            ("postgresql:/u:{}@host/c", "must have two slashes after postgresql:"),
            ("postgresql+asyncpg://u:{}@host/c", "names a driver after a +"),
            ("mysql://u:{}@host/c", "a scheme that is not PostgreSQL's"),
            ("amqps://u:{}@host/c", "a scheme that is not PostgreSQL's"),
            ("sqlite:///{}.db", "write the path of the file alone"),
            ("u:{}@host:5432/c", "must begin with postgresql://"),
            ("host=/run user=u password={} dbname=c", "must begin with postgresql://"),
            ("postgresql://u:{}@host", "has no database"),
            ("postgresql://u:{}@host/", "has no database"),
            ("postgresql://u:{}@/c", "has no host"),
            ("postgresql://u:{}@a,/c", "has no host"),
            ("postgresql://u:{}@ho%20st/c", "a host that is not a name"),
            ("postgresql://u:{}@%2Frun/c", "a host that is not a name"),
            ("postgresql://u:{}@a:1,b:x/c", "a port that is not a number"),
            ("postgresql://u:{}", "a port that is not a number"),
            ("postgresql://u:{}@host/c/d", "a raw / in the database's name"),
            ("postgresql://u:{}@host/%", "a % in the database's name"),
            ("postgresql://u:{}@host/" + "d" * 64, "a name of a database of over 63 bytes"),
            ("postgresql://u:{}@host/c#x", "a fragment after a #"),
            ("postgresql://u:{}@host/c?sslmode=disable", "has options for TLS"),
            ("postgresql://u:{}@host/c?sslrootcert=/ca", "has options for TLS"),
            ("postgresql://u:{}@host/c?target_session_attrs=any", "has the option target_session"),
            ("postgresql://u:{}@host/c?options=-csearch_path%3Dx", "options after the ? that are"),
            ("postgresql://u:{}@host/c?", "a ? that no option follows"),
            ("postgresql://u:{}@host/c?host=/run", "names hosts both before and after the ?"),
            ("postgresql:///c?host=other.example", "is not the folder of a Unix socket"),
            ("postgresql:///c?host=/run&port=x", "a port after the ? that is not a number"),
        ],
    )
    def test_with_a_mistake_is_told_which(
        self, monkeypatch: pytest.MonkeyPatch, url: str, said: str
    ) -> None:
        """Each mistake has its own sentence, and none shows the password."""
        sentence = refused(monkeypatch, database=url.format(PASSWORD))

        assert said in sentence
        assert PASSWORD not in sentence

    @given(
        st.lists(
            st.sampled_from(
                ["postgresql://", "postgres:", "u:p", "@", "/", "host", "[::1]", ":5432", "%2F",
                 ",", "?host=/run", "&port=1", "chats"]
            )
            | st.text(max_size=3),
            max_size=8,
        ).map("".join)
    )  # fmt: skip
    @settings(max_examples=500, derandomize=True, deadline=None)
    def test_is_refused_or_means_the_same_to_the_driver(self, text: str) -> None:
        """So the worker connects to the host that it shows."""
        if not is_database_url(text) or database_url_problem(text) is not None:
            return

        # What `asyncpg.connect` itself calls; its types do not know it.
        parse: Any = vars(connect_utils)["_parse_connect_dsn_and_args"]
        addresses, parameters, *_ = parse(
            dsn=text, host=None, port=None, user="u", password="p", passfile=None, database=None,
            ssl=False, service=None, servicefile=None, direct_tls=False, server_settings=None,
            target_session_attrs=None, krbsrvname=None, gsslib=None,
        )  # fmt: skip

        place, _, name = (
            database_shown(text).partition("?")[0].removeprefix("postgresql://").partition("/")
        )
        assert parameters.database == unquote(name)
        assert len(addresses) == place.count(",") + 1
