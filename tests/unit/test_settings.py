from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from worker.settings import Settings, SettingsError, load_settings, unknown_variables

# In parts, so that no file of ours holds what looks like a credential.
PASSWORD = "-".join(["s3cret", "s3cret"])


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start in an empty folder, without any setting."""
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
        """Without any setting it consumes from a local broker into data/."""
        settings = load_settings()

        assert settings.database == Path("data/projection.db").absolute()
        assert (settings.exchange, settings.queue) == ("chat.events", "chat.events.projection")
        assert (settings.prefetch, settings.batch_size, settings.delivery_limit) == (2000, 1000, 20)
        assert settings.max_message_bytes == 2**20
        assert (settings.log_format, settings.log_level) == ("auto", "info")
        assert settings.broker == "amqp://localhost:5672/"

    def test_each_say_what_they_mean(self) -> None:
        """The documentation is made of these sentences."""
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
        """A directory that was not mounted is not a broker with default credentials."""
        sentence = refused(monkeypatch, secrets_dir="nowhere")

        assert sentence.startswith("WORKER_SECRETS_DIR is no directory (nowhere).")

    def test_unknown_variables_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A typing error does not go unnoticed, and what belongs to others is let be."""
        for name in ("WORKER_PREFETCHES", "WORKER_QUEUE", "WORKER_SECRETS_DIR", "OTHER_QUEUE"):
            monkeypatch.setenv(name, "x")

        assert unknown_variables() == ["WORKER_PREFETCHES"]


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("amqp_url", "http://localhost"), ("amqp_url", "amqp://"), ("amqp_url", ""),
            ("amqp_url", "localhost:5672"), ("amqp_url", "amqp://localhost:0"),
            ("amqp_url", "amqp://localhost:99999"), ("amqp_url", "amqp://localhost:x"),
            ("amqp_url", "amqp://[::1"), ("exchange", ""), ("queue", ""), ("queue", "q" * 201),
            ("prefetch", 0), ("prefetch", 2001), ("prefetch", "many"), ("batch_size", 0),
            ("batch_size", 2001), ("delivery_limit", 0), ("delivery_limit", 1_000_001),
            ("max_message_bytes", 0), ("log_format", "xml"), ("log_level", "trace"),
            ("summary_seconds", 0), ("summary_seconds", 3601), ("summary_seconds", "nan"),
        ],
    )  # fmt: skip
    def test_setting_is_named(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: object
    ) -> None:
        """The sentence names the variable, and what to do."""
        sentence = refused(monkeypatch, **{name: value})

        assert sentence.startswith(f"Settings cannot be used: WORKER_{name.upper()}: ")
        assert "Hint: mend them in the environment" in sentence

    def test_all_are_named_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody has to start the worker once for each mistake."""
        sentence = refused(monkeypatch, prefetch=0, log_level="loud")

        assert "WORKER_PREFETCH: " in sentence
        assert "WORKER_LOG_LEVEL: Input should be 'debug', 'info', 'warning' or 'error'" in sentence

    def test_batch_is_not_larger_than_the_prefetch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Such a batch could never fill."""
        sentence = refused(monkeypatch, prefetch=100, batch_size=101)

        assert "WORKER_BATCH_SIZE (101) must not exceed WORKER_PREFETCH (100)" in sentence


class TestPassword:
    URL = f"amqps://worker:{PASSWORD}@broker.example:5671/chats"

    def test_is_not_in_what_people_see(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The broker's address is shown without it, and so are the settings."""
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
        """An unescaped / or # ends the password for a parser: that is refused, and not echoed."""
        assert PASSWORD not in refused(monkeypatch, amqp_url=url)


class TestTheBrokersAddress:
    @pytest.mark.parametrize("host", ["broker.example", "10.0.0.7", "[2001:db8::1]"])
    def test_in_plain_text_may_not_leave_this_machine(
        self, monkeypatch: pytest.MonkeyPatch, host: str
    ) -> None:
        """Unless somebody says so; the error names both ways out, and no password."""
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
        """Nobody listens there."""
        monkeypatch.setenv("WORKER_AMQP_URL", f"amqp://guest:guest@{host}/")

        assert load_settings().broker == f"amqp://{host}/"

    @pytest.mark.parametrize("option", ["?no_verify_ssl=1", "?heartbeat=0", "#fragment"])
    def test_has_no_options(self, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
        """One of the library's verifies no certificate, another finds no dead peer."""
        url = f"amqps://user:{PASSWORD}@broker.example/{option}"

        assert "must look like amqps://" in refused(monkeypatch, amqp_url=url)

    def test_may_name_several_nodes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With spaces between; people see them without the password."""
        nodes = " ".join(f"amqps://user:{PASSWORD}@node-{number}/chat" for number in (1, 2))
        monkeypatch.setenv("WORKER_AMQP_URL", nodes)

        settings = load_settings()

        assert len(settings.amqp_urls) == 2
        assert settings.broker == "amqps://node-1/chat amqps://node-2/chat"
        assert settings.vhost == "chat"
