"""Every setting: its default, unit and meaning. Read by `cli/` and `service.py` only.

From the environment (prefix WORKER_), a file `.env`, or a directory of secret files, in this order.
"""

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.errors import WorkerError

PREFIX = "WORKER_"
SECRETS_DIR_VARIABLE = f"{PREFIX}SECRETS_DIR"
SECRETS_DIR = "/run/secrets"


class SettingsError(WorkerError):
    """A setting cannot be used."""


def _amqp_urls(secret: SecretStr) -> SecretStr:
    urls = secret.get_secret_value().split()
    if not urls or not all(map(_is_amqp_url, urls)):
        raise ValueError("must look like amqps://user:password@host:5671/vhost, or amqp://")
    return secret


def _is_amqp_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    # A / ? or # in the password ends the host for a parser: the rest would be shown as a path. And
    # no options: among the library's is one that verifies no certificate.
    return is_url and "@" not in parts.path and not parts.query and not parts.fragment


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _resolved(path: Path) -> Path:
    # Once, before anything is derived from it: the lock and SQLite's companions go by the name.
    return Path(os.path.realpath(path))


Name = Annotated[str, Field(min_length=1, max_length=200)]


class Settings(BaseSettings):
    """The worker's settings; each field is an environment variable with the prefix WORKER_."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
    )

    amqp_url: Annotated[SecretStr, AfterValidator(_amqp_urls)] = Field(
        SecretStr("amqp://guest:guest@localhost:5672/"),
        description="The broker: amqps://user:password@host:5671/vhost, or amqp:// without TLS; "
        "of a cluster several nodes, with spaces between.",
    )
    amqp_ca_file: Path | None = Field(
        None, description="For amqps: the authority that signed the broker's certificate."
    )
    amqp_certificate_file: Path | None = Field(
        None, description="For amqps: the worker's own certificate, if the broker asks for one."
    )
    amqp_key_file: Path | None = Field(
        None, description="For amqps: the key of that certificate, if it is not in the same file."
    )
    amqp_allow_plain_text: bool = Field(
        default=False, description="Whether amqp:// may go to another machine, unencrypted."
    )
    database: Annotated[Path, AfterValidator(_resolved)] = Field(
        Path("data/projection.db"),
        validate_default=True,
        description="The SQLite file; made if it is missing. Symbolic links are followed.",
    )
    exchange: Name = Field(
        "chat.events", description="The topic exchange to which chat servers publish."
    )
    queue: Name = Field(
        "chat.events.projection",
        description="The worker's queue; its dead letters go to this name and '.dead-letters'.",
    )
    prefetch: int = Field(
        2000, ge=1, le=2000, description="Unacked deliveries that the broker grants, 1 to 2000."
    )
    batch_size: int = Field(
        1000, ge=1, le=2000, description="Most messages in one transaction; at most the prefetch."
    )
    delivery_limit: int = Field(
        20,
        # Two losses make a message a suspect, which is out alone from then on.
        ge=3,
        le=1_000_000,
        description="Lost deliveries of one message before the broker itself dead-letters it.",
    )
    max_message_bytes: int = Field(
        1024 * 1024, ge=1, description="Larger message bodies are dead-lettered unread."
    )
    breaker_failures: int = Field(
        25,
        ge=0,
        le=1_000_000,
        description="Messages of a kind that fail in a row, with none applied since the start, "
        "before the worker holds them instead of dead-lettering them; 0: never.",
    )
    health_host: str = Field(
        "127.0.0.1", description="The address where /livez, /readyz and /metrics are served."
    )
    health_port: int = Field(
        8080, ge=0, le=65535, description="Their port; 0 takes any that is free, and logs it."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, json elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug adds one line for each batch."
    )
    summary_seconds: float = Field(
        10.0, gt=0, le=3600, description="Least time between two summaries of what was projected."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size > self.prefetch:
            raise ValueError(
                f"{PREFIX}BATCH_SIZE ({self.batch_size}) must not exceed {PREFIX}PREFETCH "
                f"({self.prefetch})"
            )
        remote = [
            url for url in self.amqp_urls if not url.startswith("amqps:") and not _is_local(url)
        ]
        if remote and not self.amqp_allow_plain_text:
            raise ValueError(
                f"{PREFIX}AMQP_URL must be amqps:// for another machine: amqp:// sends the "
                f"password and all messages unencrypted ({PREFIX}AMQP_ALLOW_PLAIN_TEXT=true "
                "allows it)"
            )
        return self

    @property
    def amqp_urls(self) -> tuple[str, ...]:
        """Give the nodes of the broker, with the password."""
        return tuple(self.amqp_url.get_secret_value().split())

    @property
    def vhost(self) -> str:
        """Give the virtual host, which is / if the address names none."""
        return unquote(urlsplit(self.amqp_urls[0]).path[1:]) or "/"

    @property
    def broker(self) -> str:
        """Give the nodes of the broker without user and password, for people."""
        return " ".join(map(_shown, self.amqp_urls))


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def load_settings() -> Settings:
    """Read the settings; raises `SettingsError` that names each wrong one and what is allowed."""
    directory = os.environ.get(SECRETS_DIR_VARIABLE, SECRETS_DIR)
    is_directory = Path(directory).is_dir()
    if SECRETS_DIR_VARIABLE in os.environ and not is_directory:
        raise SettingsError(
            f"{SECRETS_DIR_VARIABLE} is no directory ({directory}).",
            "name the directory that holds the secret files, such as worker_amqp_url.",
        )
    try:
        return Settings(_secrets_dir=directory if is_directory else None)
    except OSError as error:
        raise SettingsError(
            f"A file with settings cannot be read ({error.filename}: {error.strerror}).",
            "see that this user may read it.",
        ) from None
    except ValidationError as error:
        problems = [
            f"{PREFIX}{str(each['loc'][0]).upper()}: {_allowed(each['msg'])}"
            if each["loc"]
            else _allowed(each["msg"])
            for each in error.errors(include_url=False, include_input=False)
        ]
        raise SettingsError(
            f"Settings cannot be used: {'; '.join(problems)}.",
            "mend them in the environment, in .env, or in the secret files.",
        ) from None


def unknown_variables() -> list[str]:
    """Give the names in the environment that have our prefix and are no setting."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | {SECRETS_DIR_VARIABLE}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def _allowed(message: str) -> str:
    return message.removeprefix("Value error, ")
