"""Every setting: its default, unit and meaning. Read by `cli/`, `service.py` and what builds them.

Where the values come from, sources.py says.
"""

import os
import re
import stat
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from worker import sources
from worker.addresses import (
    DEFAULT_HEALTH_HOST,
    DEFAULT_HEALTH_PORT,
    amqp_urls_problem,
    health_port,
    shown,
    vhost_of,
)
from worker.sources import PREFIX, SettingsError, value_shown, variable_of

AMQP_URL_RULE = "must look like amqps://user:password@host:5671/vhost, or amqp://"
# What the client library takes as the name of an exchange (pamqp, commands.py and constants.py).
# A queue may have a longer one, but its dead-letter exchange is named after it.
NAME_CHARACTERS = 127
NAME = re.compile(r"[a-zA-Z0-9-_.:@#,/+ ]*")
DEAD_LETTERS, DATABASE = ".dead-letters", ".database"
QUEUE_CHARACTERS = NAME_CHARACTERS - len(DEAD_LETTERS)
LONGEST_COMPANION = ".rebuild-journal"
# What RabbitMQ takes at most, unless it is told otherwise.
MAX_MESSAGE_BYTES = 128 * 1024 * 1024


def _amqp_urls(secret: SecretStr) -> SecretStr:
    if problem := amqp_urls_problem(secret.get_secret_value()):
        raise ValueError(f"{problem} (it {AMQP_URL_RULE})")
    return secret


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _resolved(path: Path) -> Path:
    try:
        # Once, before anything is derived from it: the lock and SQLite's companions go by the name.
        resolved = Path(os.path.realpath(path))
        mode = _mode(resolved)
        if mode is None:
            _mode(Path(f"{resolved}{LONGEST_COMPANION}"))
    except OSError as error:
        raise ValueError(f"cannot be the path of a file ({error.strerror})") from None
    if not str(resolved).isprintable():
        raise ValueError("must be in a folder whose name is printable text in UTF-8")
    if mode is not None and not stat.S_ISREG(mode):
        raise ValueError("must be the path of a file, but a folder or a device is there")
    return resolved


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None  # Whoever opens it says so.


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(
            "must consist of ASCII letters, digits, spaces and the characters - _ . : @ # , / +, "
            "which are those that the AMQP client can send"
        )
    if name.startswith("amq."):
        raise ValueError("must not begin with 'amq.', which RabbitMQ keeps for itself")
    return name


def _queue(name: str) -> str:
    if name.endswith((DEAD_LETTERS, DATABASE)):
        raise ValueError(
            f"must not end in '{DEAD_LETTERS}' or '{DATABASE}', as a worker's own names do"
        )
    return name


def _port(port: object) -> object:
    return health_port(port) if isinstance(port, str) else port


Name = Annotated[str, Field(min_length=1), AfterValidator(_name)]


class Settings(BaseModel):
    """The worker's settings; each field is an environment variable with the prefix WORKER_."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)

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
        "chat.events",
        max_length=NAME_CHARACTERS,
        description="The topic exchange to which chat servers publish.",
    )
    queue: Annotated[Name, AfterValidator(_queue)] = Field(
        "chat.events.projection",
        max_length=QUEUE_CHARACTERS,
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
        1024 * 1024,
        ge=1,
        le=MAX_MESSAGE_BYTES,
        description="Larger message bodies are dead-lettered unread.",
    )
    breaker_failures: int = Field(
        25,
        ge=0,
        le=1_000_000,
        description="Messages of a kind that fail in a row, with none applied since the start, "
        "before the worker holds them instead of dead-lettering them; 0: never.",
    )
    health_host: str = Field(
        DEFAULT_HEALTH_HOST,
        description="The address where /livez, /readyz and /metrics are served.",
    )
    health_port: Annotated[int, BeforeValidator(_port)] = Field(
        DEFAULT_HEALTH_PORT,
        description="Their port; 0 takes any that is free, and logs it.",
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
        own = (f"{self.queue}{DEAD_LETTERS}", f"{self.queue}{DATABASE}")
        if self.exchange in own or self.exchange.startswith(f"{own[1]}."):
            raise ValueError(
                f"{PREFIX}EXCHANGE ({self.exchange}) is a name that the worker gives to an "
                f"exchange of its own for {PREFIX}QUEUE ({self.queue}); set one of them to another "
                "name"
            )
        remote = [
            url for url in self.amqp_urls if urlsplit(url).scheme != "amqps" and not _is_local(url)
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
        """Return the nodes of the broker, with the password."""
        return tuple(self.amqp_url.get_secret_value().split())

    @property
    def vhost(self) -> str:
        """Return the virtual host, which is / if the address names none."""
        return vhost_of(self.amqp_urls[0])

    @property
    def broker(self) -> str:
        """Return the nodes of the broker without user and password, for people."""
        return " ".join(map(shown, self.amqp_urls))


NAMES = set(Settings.model_fields)
SECRET = {"amqp_url"}


def load_settings() -> Settings:
    """Read the settings; raises `SettingsError` that names each wrong one and what is allowed."""
    found = sources.read(NAMES)
    try:
        return Settings.model_validate(found)
    except ValidationError as error:
        problems = map(_told, error.errors(include_url=False))
        raise SettingsError(
            f"Settings cannot be used: {'; '.join(problems)}.",
            "mend them in the environment, in .env, or in the secret files.",
        ) from None


def unknown_variables() -> list[str]:
    """Return the variables that have our prefix and are no setting."""
    return sources.unknown_variables(NAMES)


def _told(problem: ErrorDetails) -> str:
    """Return which setting is wrong, by which rule, and what it is now unless that is secret."""
    rule = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return rule
    name = str(problem["loc"][0])
    now = "" if name in SECRET else f" (it is {value_shown(str(problem['input']))})"
    return f"{variable_of(name)}: {rule}{now}"
