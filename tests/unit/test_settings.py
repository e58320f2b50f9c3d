from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from aiormq import Connection
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands
from pydantic import SecretStr

from worker.addresses import amqp_urls_problem, vhost_of
from worker.broker.claim import exchange_of
from worker.broker_settings import topology_of
from worker.settings import (
    DATABASE,
    DEAD_LETTERS,
    Settings,
    load_settings,
    unknown_variables,
)
from worker.sources import SettingsError

# Split, so that no file contains what looks like a credential.
PASSWORD = "-".join(["s3cret", "s3cret"])


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


class TestDefaults:
    def test_are_those_of_a_worker_on_this_machine(self) -> None:
        """By default the worker consumes from a local broker into data/."""
        settings = load_settings()

        assert settings.database == Path("data/projection.db").absolute()
        assert (settings.exchange, settings.queue) == ("chat.events", "chat.events.projection")
        assert (settings.prefetch, settings.batch_size, settings.delivery_limit) == (2000, 1000, 20)
        assert settings.max_message_bytes == 2**20
        assert (settings.log_format, settings.log_level) == ("auto", "info")
        assert settings.broker == "amqp://localhost:5672/"

    def test_each_say_what_they_mean(self) -> None:
        """The documentation uses these sentences."""
        for field in Settings.model_fields.values():
            assert field.description
            assert field.description.endswith(".")


class TestSources:
    def test_environment_counts_before_dotenv_before_secret_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The source nearest to the process wins."""
        secrets = tmp_path / "secrets"
        secrets.mkdir()
        for name in ("worker_queue", "worker_exchange", "worker_log_level"):
            (secrets / name).write_text("error\n")
        (tmp_path / ".env").write_text("WORKER_QUEUE=dotenv\nWORKER_EXCHANGE=dotenv\n")
        monkeypatch.setenv("WORKER_SECRETS_DIR", str(secrets))
        monkeypatch.setenv("WORKER_QUEUE", "environment")

        settings = load_settings()

        found = (settings.queue, settings.exchange, settings.log_level)
        assert found == ("environment", "dotenv", "error")

    def test_missing_directory_of_secrets_is_refused_if_it_was_named(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An unmounted directory must not lead to a broker with default credentials."""
        sentence = refused(monkeypatch, secrets_dir="nowhere")

        assert sentence.startswith("WORKER_SECRETS_DIR is not a directory (nowhere).")

    def test_unknown_variables_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A typing error is reported, and variables of other programs are ignored."""
        for name in ("WORKER_PREFETCHES", "WORKER_QUEUE", "WORKER_SECRETS_DIR", "OTHER_QUEUE"):
            monkeypatch.setenv(name, "x")

        assert unknown_variables() == ["WORKER_PREFETCHES"]

    @pytest.mark.parametrize("name", sorted(Settings.model_fields))
    @pytest.mark.parametrize("empty", ["", "  "])
    def test_an_empty_variable_is_an_unset_one(
        self, monkeypatch: pytest.MonkeyPatch, name: str, empty: str
    ) -> None:
        """Compose turns a variable without a value into an empty one."""
        unset = load_settings()

        monkeypatch.setenv(f"WORKER_{name.upper()}", empty)

        assert load_settings() == unset

    def test_an_empty_variable_hides_no_other_source(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An address in a secret file is used although the variable is set but empty."""
        (tmp_path / "worker_queue").write_text("from-a-file\n")
        (tmp_path / ".env").write_text("WORKER_QUEUE=\n")
        monkeypatch.setenv("WORKER_SECRETS_DIR", str(tmp_path))
        monkeypatch.setenv("WORKER_QUEUE", "")

        assert load_settings().queue == "from-a-file"

    @pytest.mark.parametrize("content", [b"\xff\xfe", None])
    @pytest.mark.parametrize("name", ["worker_queue", "WORKER_AMQP_URL"])
    def test_a_secret_file_that_is_no_text_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None
    ) -> None:
        """So is the folder that Docker creates where the file to mount is missing."""
        path = tmp_path / name
        path.mkdir() if content is None else path.write_bytes(content)

        assert str(path) in refused(monkeypatch, secrets_dir=tmp_path)

    def test_an_env_file_that_is_no_text_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error names the file, and there is no traceback."""
        (tmp_path / ".env").write_bytes(b"WORKER_QUEUE=\xff\n")

        assert ".env" in refused(monkeypatch)

    def test_an_env_folder_is_somebody_elses(self, tmp_path: Path) -> None:
        """A virtual environment may have that name."""
        (tmp_path / ".env").mkdir()

        assert load_settings().queue == "chat.events.projection"

    def test_links_to_a_service_are_no_unknown_variables(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Kubernetes sets seven of them for a Service named worker-health."""
        address = "tcp://10.0.0.1:8080"
        links = {
            "SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "8080", "SERVICE_PORT_HTTP": "8080",
            "PORT_8080_TCP": address, "PORT_8080_TCP_PROTO": "tcp", "PORT_8080_TCP_PORT": "8080",
            "PORT_8080_TCP_ADDR": "10.0.0.1",
        }  # fmt: skip
        for name, value in links.items():
            monkeypatch.setenv(f"WORKER_HEALTH_{name}", value)

        assert unknown_variables() == []
        assert "enableServiceLinks: false" in refused(monkeypatch, health_port=address)


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("amqp_url", "http://localhost"), ("amqp_url", "amqp://"),
            ("amqp_url", "localhost:5672"), ("amqp_url", "amqp://localhost:0"),
            ("amqp_url", "amqp://localhost:99999"), ("amqp_url", "amqp://localhost:x"),
            ("amqp_url", "amqp://[::1"), ("amqp_ca_file", "\udcff"), ("database", "/"),
            ("database", "/dev/null"), ("database", "d" * 250), ("database", "\udcff"),
            ("exchange", "amq.topic"), ("exchange", "x" * 128), ("exchange", "ü"),
            ("queue", "amq.q"), ("queue", "q" * 115), ("queue", "100%"),
            ("queue", "q.dead-letters"), ("queue", "q.database"), ("prefetch", 0),
            ("prefetch", 2001), ("prefetch", "many"), ("batch_size", 0), ("batch_size", 2001),
            ("delivery_limit", 0), ("delivery_limit", 1_000_001), ("max_message_bytes", 0),
            ("max_message_bytes", 2**31), ("health_port", "tcp://10.0.0.1:8080"),
            ("health_port", "-1"), ("health_port", "٣"), ("health_port", "9" * 5000),
            ("log_format", "xml"), ("log_level", "trace"), ("summary_seconds", 0),
            ("summary_seconds", 3601), ("summary_seconds", "nan"),
        ],
    )  # fmt: skip
    def test_setting_is_named(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: object
    ) -> None:
        """The error names the variable and says what to do."""
        sentence = refused(monkeypatch, **{name: value})

        assert f"WORKER_{name.upper()}" in sentence.partition(" Hint: ")[0]
        assert sentence.partition(" Hint: ")[2]

    def test_database_in_a_folder_of_odd_bytes_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SQLite accepts no such path."""
        folder = tmp_path / "\udcff"
        folder.mkdir()
        monkeypatch.chdir(folder)

        assert "WORKER_DATABASE: must be in a folder" in refused(monkeypatch)

    def test_all_are_named_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One start reports all mistakes."""
        sentence = refused(monkeypatch, prefetch=0, log_level="loud")

        assert "WORKER_PREFETCH: " in sentence
        assert "WORKER_LOG_LEVEL: Input should be 'debug', 'info', 'warning' or 'error'" in sentence

    def test_batch_is_not_larger_than_the_prefetch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Such a batch could never be filled."""
        sentence = refused(monkeypatch, prefetch=100, batch_size=101)

        assert "WORKER_BATCH_SIZE (101) must not exceed WORKER_PREFETCH (100)" in sentence

    @pytest.mark.parametrize("exchange", ["q.dead-letters", "q.database", "q.database.0123"])
    def test_exchange_is_none_of_those_of_the_queue(
        self, monkeypatch: pytest.MonkeyPatch, exchange: str
    ) -> None:
        """Every bad message would come back as a message, in an endless loop."""
        sentence = refused(monkeypatch, queue="q", exchange=exchange)

        assert f"WORKER_EXCHANGE ({exchange})" in sentence
        assert "WORKER_QUEUE (q)" in sentence

    def test_names_may_be_as_long_as_the_library_takes_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every name that is derived from the longest queue name can be sent."""
        monkeypatch.setenv("WORKER_QUEUE", "q" * 114)
        monkeypatch.setenv("WORKER_EXCHANGE", "-_.:@#,/+ x".ljust(127, "x"))

        topology = topology_of(load_settings())

        own = [f"{topology.queue}{suffix}" for suffix in (DEAD_LETTERS, DATABASE)]
        assert [topology.dead_letters, exchange_of(topology.queue)] == own
        for name in (*topology.exchanges, exchange_of(topology.queue)):
            commands.Exchange.Declare(exchange=name).validate()
        for name in topology.queues:
            commands.Queue.Declare(queue=name).validate()

    def test_health_host_in_brackets_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Brackets belong to a URL; the sentence shows the address without them."""
        sentence = refused(monkeypatch, health_host="[::1]")

        assert "WORKER_HEALTH_HOST: must be" in sentence
        assert "without brackets, such as ::1" in sentence

    def test_password_of_an_address_in_the_wrong_place_is_not_shown(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error names the value, but not the secret in it."""
        url = f"amqps://worker:{PASSWORD}/@{PASSWORD}@broker.example"

        sentence = refused(monkeypatch, health_port=url)

        assert "amqps://***@broker.example" in sentence
        assert PASSWORD not in sentence


class TestPassword:
    URL = f"amqps://worker:{PASSWORD}@broker.example:5671/chats"

    def test_is_not_in_what_people_see(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The broker's address and the settings are shown without it."""
        monkeypatch.setenv("WORKER_AMQP_URL", self.URL)

        settings = load_settings()

        assert settings.amqp_url == SecretStr(self.URL)
        assert settings.broker == "amqps://broker.example:5671/chats"
        assert PASSWORD not in repr(settings)

    @pytest.mark.parametrize(
        "url",
        [
            URL.replace("amqps", "http"), URL.replace("5671", "port"), URL.replace("://", ":/"),
            URL.replace(":s3cret", ":12/s3cret"), URL.replace(":s3cret", ":12#s3cret"),
            URL.replace(":s3cret", ":12?s3cret"),
        ],
    )  # fmt: skip
    def test_of_a_wrong_address_is_not_shown(
        self, monkeypatch: pytest.MonkeyPatch, url: str
    ) -> None:
        """An unescaped / or # ends the password for a parser: it is refused and not echoed."""
        assert PASSWORD not in refused(monkeypatch, amqp_url=url)


class TestTheBrokersAddress:
    @pytest.mark.parametrize("host", ["broker.example", "10.0.0.7", "[2001:db8::1]"])
    def test_in_plain_text_may_not_leave_this_machine(
        self, monkeypatch: pytest.MonkeyPatch, host: str
    ) -> None:
        """An explicit setting allows it; the error names both solutions, and no password."""
        url = f"amqp://user:{PASSWORD}@{host}:5672/"

        sentence = refused(monkeypatch, amqp_url=url)

        assert "amqps://" in sentence
        assert "WORKER_AMQP_ALLOW_PLAIN_TEXT=true" in sentence
        assert PASSWORD not in sentence
        monkeypatch.setenv("WORKER_AMQP_ALLOW_PLAIN_TEXT", "true")
        assert load_settings().amqp_urls == (url,)

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
    def test_in_plain_text_may_stay_on_this_machine(
        self, monkeypatch: pytest.MonkeyPatch, host: str
    ) -> None:
        """Nobody can listen there."""
        monkeypatch.setenv("WORKER_AMQP_URL", f"amqp://guest:guest@{host}/")

        assert load_settings().broker == f"amqp://{host}/"

    @pytest.mark.parametrize("option", ["?no_verify_ssl=1", "?heartbeat=0", "#fragment"])
    def test_has_no_options(self, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
        """One of the library's options disables certificate checks, another heartbeats."""
        url = f"amqps://user:{PASSWORD}@broker.example/{option}"

        assert "must look like amqps://" in refused(monkeypatch, amqp_url=url)

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("amqp://u:{}@x@host/", "a raw @ in the user or password; write %40"),
            ("amqp://u:{}/x@host/", "a raw / in the user or password"),
            ("amqp://u:{}?x@host/", "a raw ? in the user or password; write %3F"),
            ("amqp://u:{}#x@host/", "a raw # in the user or password; write %23"),
            ("amqp://u:{}[x@host/", "a raw [ in the user or password; write %5B"),
            ("amqp://u:{}%x@host/", "a % in the user or password"),
            ("amqp://u:{}%ff@host/", "escapes in the user or password that are not UTF-8"),
            ("amqp://u:{}%00@host/", "control characters in the user or password"),
            ("amqp://u:{} x@host/", "a space within a URL"),
            ("amqp://u:{}@host/?heartbeat=0", "options after a ?"),
            ("amqp://u:{}@host/v#x", "a fragment after a #"),
            ("amqp://u:{}@a:1,b:2/", "several hosts in one URL"),
            ("amqp://u:{0}@a:1,u:{0}@b:2/", "several hosts in one URL"),
            ("amqp://u:{0}@a,amqp://u:{0}@b", "commas or similar characters between its URLs"),
            ("amqp://u:{0}@a/x amqp://u:{0}@b/y", "different virtual hosts"),
            ("amqp://u:{0}@a http://u:{0}@b", "(URL 2 of 2) has another scheme; http://"),
            ("https://u:{}@host", "another scheme; https://"),
            ("amqp:/u:{}@host", "must have two slashes after amqp:"),
            ("u:{}@host:5672", "must begin with amqps:// or amqp://"),
            ("amqp://u:{}@", "has no host"),
            ("amqp://u:{}@:5672/", "has no host"),
            ("amqp://u:{}@ho%20st/", "a host that is not a name"),
            ("amqp://u:{}@$HOST/", "a host that is not a name"),
            ("amqp://u:{}@::1/", "more than one colon in its host"),
            ("amqp://u:{}@[::1/", "brackets without an IPv6 address"),
            ("amqp://u:{}@host:amqp/", "a port that is not a number"),
            ("amqp://u:{}", "a port that is not a number"),
            ("amqp://u:{}@host/%", "a % in the virtual host"),
            ("amqp://u:{}@host/" + "v" * 128, "a virtual host of over 127 characters"),
            ("'amqp://u:{}@host/'", "quotes around it"),
            ("“amqp://u:{}@host/”", "quotes around it"),
            ("amqp://u:{}\x1b@host/", "control characters"),
        ],
    )  # fmt: skip
    def test_with_a_mistake_is_told_which(
        self, monkeypatch: pytest.MonkeyPatch, url: str, said: str
    ) -> None:
        """Each mistake has its own sentence, and none shows the password."""
        sentence = refused(monkeypatch, amqp_url=url.format(PASSWORD))

        assert said in sentence
        assert PASSWORD not in sentence

    @given(
        st.lists(
            st.sampled_from(["amqp://", "amqps:", "u:p", "@", "/", "host", "[::1]", ":5672", "%2F"])
            | st.text(max_size=3),
            max_size=8,
        ).map("".join)
    )
    @settings(max_examples=300, derandomize=True, deadline=None)
    def test_is_refused_or_the_client_library_takes_it(self, text: str) -> None:
        """Every accepted address means the same to the library and to the worker."""
        if amqp_urls_problem(text) is not None:
            return

        for address in text.split():
            parsed = Connection(address, loop=Mock())
            assert parsed.url.host
            assert parsed.url.scheme in ("amqp", "amqps")
            assert parsed.vhost == vhost_of(address)

    def test_may_name_several_nodes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Spaces between them are allowed; people see them without the password."""
        nodes = " ".join(f"amqps://user:{PASSWORD}@node-{number}/chat" for number in (1, 2))
        monkeypatch.setenv("WORKER_AMQP_URL", nodes)

        settings = load_settings()

        assert len(settings.amqp_urls) == 2
        assert settings.broker == "amqps://node-1/chat amqps://node-2/chat"
        assert settings.vhost == "chat"
