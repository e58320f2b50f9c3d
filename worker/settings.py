"""Every setting: its default, unit and meaning. Read by `cli/`, `service.py` and what builds them.

sources.py finds the values.
"""

import os
import re
import socket
import stat
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
    health_host,
    health_port,
    is_local,
    shown,
    vhost_of,
)
from worker.database_urls import database_shown, database_url_problem, is_database_url
from worker.sources import CORRECT, PREFIX, SettingsError, value_shown, variable_of
from worker.store.postgres.address import Address

AMQP_URL_RULE = "must look like amqps://user:password@host:5671/vhost, or amqp://"
DATABASE_URL_RULE = "must look like postgresql://user:password@host:5432/database, or be a path"
# The names of exchanges that the client library accepts (pamqp, commands.py and constants.py). The
# name of a queue could be longer, but its dead-letter exchange is named after it.
NAME_CHARACTERS = 127
NAME = re.compile(r"[a-zA-Z0-9-_.:@#,/+ ]*")
DEAD_LETTERS, DATABASE, PARTITIONS = ".dead-letters", ".database", ".partitions"
QUEUE_CHARACTERS = NAME_CHARACTERS - len(DEAD_LETTERS)
LONGEST_COMPANION = ".rebuild-journal"
# The names of their queues have three digits. Each costs the broker some 0.1 MB, and each worker
# has two consumers on it.
MAX_PARTITIONS = 256
# RabbitMQ's default limit.
MAX_MESSAGE_BYTES = 128 * 1024 * 1024


def _amqp_urls(secret: SecretStr) -> SecretStr:
    if problem := amqp_urls_problem(secret.get_secret_value()):
        raise ValueError(f"{problem} (it {AMQP_URL_RULE})")
    return secret


def _database(value: object) -> object:
    """Return the secret URL of a PostgreSQL database, or the path of a file."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    if isinstance(value, Path) or not is_database_url(text):
        return _resolved(Path(text))
    if problem := database_url_problem(text):
        raise ValueError(f"{problem} (it {DATABASE_URL_RULE})")
    return SecretStr(text)


def _resolved(path: Path) -> Path:
    try:
        # Resolved once, because the names of the lock and of SQLite's -wal and -shm derive from it.
        resolved = Path(os.path.realpath(path))
        mode = _mode(resolved)
        if mode is None:
            _mode(Path(f"{resolved}{LONGEST_COMPANION}"))
    except OSError as error:
        raise ValueError(f"is not a valid path of a file ({error.strerror})") from None
    if not str(resolved).isprintable():
        raise ValueError("must be in a folder whose name is printable UTF-8 text")
    if mode is not None and not stat.S_ISREG(mode):
        raise ValueError("must be the path of a file, but a folder or a device has this path")
    return resolved


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None  # The error is reported when the file is opened.


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(
            "must consist of ASCII letters, digits, spaces and the characters - _ . : @ # , / +, "
            "because the AMQP client cannot send others"
        )
    if name.startswith("amq."):
        raise ValueError("must not begin with 'amq.', which RabbitMQ reserves for itself")
    return name


def _queue(name: str) -> str:
    if name.endswith((DEAD_LETTERS, DATABASE, PARTITIONS)):
        raise ValueError(
            f"must not end in '{DEAD_LETTERS}', '{DATABASE}' or '{PARTITIONS}', which the worker "
            "appends itself"
        )
    return name


def _schema(name: str) -> str:
    if not SCHEMA.fullmatch(name):
        raise ValueError(
            "must consist of lower-case ASCII letters, digits and underscores, begin with a letter "
            "or an underscore, and be none of PostgreSQL's own schemas"
        )
    return name


def _port(port: object) -> object:
    return health_port(port) if isinstance(port, str) else port


Name = Annotated[str, Field(min_length=1), AfterValidator(_name)]
Host = Annotated[str, AfterValidator(health_host)]
# A rebuild appends _rebuild, and PostgreSQL cuts names off after 63 bytes.
SCHEMA_CHARACTERS = 55
SCHEMA = re.compile(r"(?!pg_|information_schema$)[a-z_][a-z0-9_]*")


class Settings(BaseModel):
    """The worker's settings; each field is an environment variable with the prefix WORKER_."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)

    amqp_url: Annotated[SecretStr, AfterValidator(_amqp_urls)] = Field(
        SecretStr("amqp://guest:guest@localhost:5672/"),
        description="The broker: amqps://user:password@host:5671/vhost, or amqp:// without TLS; "
        "for a cluster, the URLs of several nodes, separated by spaces.",
    )
    amqp_ca_file: Path | None = Field(
        None,
        description="For amqps: the file with the certificate of the authority that signed the "
        "broker's.",
    )
    amqp_certificate_file: Path | None = Field(
        None,
        description="For amqps: the file with the worker's certificate, if the broker needs one.",
    )
    amqp_key_file: Path | None = Field(
        None,
        description="For amqps: the file with the key of that certificate, if it is separate.",
    )
    amqp_allow_plain_text: bool = Field(
        default=False,
        description="Whether to allow amqp://, which is unencrypted, to another machine.",
    )
    database: Annotated[Path | SecretStr, BeforeValidator(_database)] = Field(
        Path("data/projection.db"),
        validate_default=True,
        description="The path of an SQLite file, which is created if it is missing (symbolic links "
        "are followed), or postgresql://user:password@host:5432/database; a cluster has several "
        "hosts, separated by commas.",
    )
    database_schema: Annotated[str, AfterValidator(_schema)] = Field(
        "projection",
        max_length=SCHEMA_CHARACTERS,
        description="In PostgreSQL: the schema with all tables of the worker; created if it is "
        "missing.",
    )
    database_ca_file: Path | None = Field(
        None,
        description="In PostgreSQL: the file with the certificate of the authority that signed the "
        "server's.",
    )
    database_allow_plain_text: bool = Field(
        default=False,
        description="In PostgreSQL: whether to allow an unencrypted connection to another machine.",
    )
    exchange: Name = Field(
        "chat.events",
        max_length=NAME_CHARACTERS,
        description="The topic exchange to which chat servers publish.",
    )
    queue: Annotated[Name, AfterValidator(_queue)] = Field(
        "chat.events.projection",
        max_length=QUEUE_CHARACTERS,
        description="The worker's queue. Its dead letters go to the queue of this name with "
        "'.dead-letters' appended.",
    )
    partitions: int = Field(
        32,
        ge=1,
        le=MAX_PARTITIONS,
        description="Number of queues over which the messages are spread, with PostgreSQL only. "
        "Read at the first start only; later, 'topology resize' changes the number.",
    )
    ordinal: int | None = Field(
        None,
        ge=0,
        lt=MAX_PARTITIONS,
        description="The worker's number among those of its queue, from 0, which spreads the "
        "partitions evenly over the workers; None: they are spread by the workers' names.",
    )
    name: str | None = Field(
        None,
        min_length=1,
        max_length=NAME_CHARACTERS,
        description="The worker's name, different from all others of its queue; None: the name of "
        "the host and the process id.",
    )
    prefetch: int = Field(
        2000, ge=1, le=2000, description="Maximum number of unacked deliveries, 1 to 2000."
    )
    batch_size: int = Field(
        1000,
        ge=1,
        le=2000,
        description="Maximum number of messages in a transaction; at most the prefetch.",
    )
    delivery_limit: int = Field(
        20,
        # After two losses a message is a suspect, which is tried alone from then on.
        ge=3,
        le=1_000_000,
        description="Lost deliveries of one message after which the broker dead-letters it.",
    )
    max_message_bytes: int = Field(
        1024 * 1024,
        ge=1,
        le=MAX_MESSAGE_BYTES,
        description="Messages with larger bodies are dead-lettered without being decoded.",
    )
    breaker_failures: int = Field(
        25,
        ge=0,
        le=1_000_000,
        description="Failures in a row of one kind, with none of its messages applied since the "
        "start, after which the worker holds them instead of dead-lettering them; 0: never.",
    )
    health_host: Host = Field(
        DEFAULT_HEALTH_HOST,
        description="The address on which /livez, /readyz and /metrics are served.",
    )
    health_port: Annotated[int, BeforeValidator(_port)] = Field(
        DEFAULT_HEALTH_PORT,
        description="Their port; 0 takes any free port, and the log says which.",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="json, console, or auto: console on a terminal, json elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error; debug adds one line for each batch."
    )
    summary_seconds: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Minimum time between two log lines that summarize what was projected.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size > self.prefetch:
            raise ValueError(
                f"{PREFIX}BATCH_SIZE ({self.batch_size}) must not exceed {PREFIX}PREFETCH "
                f"({self.prefetch})"
            )
        own = [f"{self.queue}{end}" for end in (DEAD_LETTERS, DATABASE, PARTITIONS)]
        claims = tuple(f"{name}." for name in own[1:])
        if self.exchange in own or self.exchange.startswith(claims):
            raise ValueError(
                f"{PREFIX}EXCHANGE ({self.exchange}) is the name of an exchange that the worker "
                f"creates for {PREFIX}QUEUE ({self.queue}); set one of them to another name"
            )
        parts = map(urlsplit, self.amqp_urls)
        if (
            any(part.scheme != "amqps" and not is_local(part.hostname or "") for part in parts)
            and not self.amqp_allow_plain_text
        ):
            raise ValueError(
                f"{PREFIX}AMQP_URL must be amqps:// for another machine, because amqp:// sends the "
                f"password and all messages unencrypted ({PREFIX}AMQP_ALLOW_PLAIN_TEXT=true "
                "allows it)"
            )
        return self

    @property
    def store(self) -> Path | Address:
        """Return what `store_of` opens: the path of a file, or an address with the password."""
        if isinstance(self.database, Path):
            return self.database
        return Address(
            self.database.get_secret_value(),
            self.database_schema,
            self.database_ca_file,
            self.database_allow_plain_text,
        )

    @property
    def shown_database(self) -> str:
        """Return the path or the URL of the database for display, without user and password."""
        if isinstance(self.database, Path):
            return str(self.database)
        return database_shown(self.database.get_secret_value())

    @property
    def amqp_urls(self) -> tuple[str, ...]:
        """Return the URLs of the broker's nodes, with the password."""
        return tuple(self.amqp_url.get_secret_value().split())

    @property
    def worker_name(self) -> str:
        """Return the worker's name among those of its queue."""
        return self.name or f"{socket.gethostname()}-{os.getpid()}"

    @property
    def vhost(self) -> str:
        """Return the virtual host; it is / if the URL names none."""
        return vhost_of(self.amqp_urls[0])

    @property
    def broker(self) -> str:
        """Return the URLs of the broker's nodes for display, without user and password."""
        return " ".join(map(shown, self.amqp_urls))


NAMES = set(Settings.model_fields)
SECRET = {"amqp_url"}


def load_settings() -> Settings:
    """Return the settings; raises `SettingsError`, which names each wrong one and its rule."""
    found = sources.read(NAMES)
    try:
        return Settings.model_validate(found)
    except ValidationError as error:
        problems = map(_described, error.errors(include_url=False))
        raise SettingsError(
            f"Settings cannot be used: {'; '.join(problems)}.",
            CORRECT,
        ) from None


def unknown_variables() -> list[str]:
    """Return the variables that have the worker's prefix but are not settings."""
    return sources.unknown_variables(NAMES)


def _described(problem: ErrorDetails) -> str:
    """Return which setting is wrong, the rule it breaks, and its value unless that is secret."""
    rule = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return rule
    name = str(problem["loc"][0])
    text = str(problem["input"])
    is_secret = name in SECRET or (name == "database" and is_database_url(text))
    now = "" if is_secret else f" (it is {value_shown(text)})"
    return f"{variable_of(name)}: {rule}{now}"
