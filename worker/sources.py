"""Where settings come from: the environment, then `.env`, then a directory of secret files.

Returns text; what it must be, settings.py says. An empty value is no value, because that is what an
unset variable becomes in a compose file. Imports next to nothing, because `healthcheck` runs every
few seconds.
"""

import os
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

from worker.errors import WorkerError

PREFIX = "WORKER_"
SECRETS_DIR_VARIABLE = f"{PREFIX}SECRETS_DIR"
SECRETS_DIR = "/run/secrets"
ENV_FILE = ".env"
MULTILINE = {"amqp_url"}
SHOWN_CHARACTERS = 80


class SettingsError(WorkerError):
    """A setting cannot be used."""


def read(names: set[str]) -> dict[str, str]:
    """Return the settings of these names that have a value: the nearest source counts.

    Raises `SettingsError` for a file that cannot be read, and for what is not text.
    """
    found: dict[str, str] = {}
    for source in (_secrets(names), _env_file(), os.environ):
        for variable, text in source.items():
            name = variable.lower().removeprefix(PREFIX.lower())
            if name in names and variable.upper() == variable_of(name) and text.strip():
                found[name] = text.strip()
    for name, text in found.items():
        # Bytes that are not UTF-8 arrive as lone surrogates. Addresses may stand on several lines.
        if not ("".join(text.split()) if name in MULTILINE else text).isprintable():
            raise SettingsError(
                f"{variable_of(name)} has control characters, or bytes that are not UTF-8.",
                "set it again by hand: something invisible was copied with it.",
            )
    return found


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def unknown_variables(names: set[str]) -> list[str]:
    """Return the variables that have our prefix and are no setting.

    Those that Kubernetes sets for a Service whose name begins with `worker` are left out.
    """
    variables = {*os.environ, *_env_file()}
    known = {*map(variable_of, names), SECRETS_DIR_VARIABLE}
    return sorted(
        escaped(name)
        for name in variables
        if name.startswith(PREFIX) and name.upper() not in known and not _is_service_link(name)
    )


def value_shown(text: str) -> str:
    """Return a value for people: short, on one line, without the password of a URL in it."""
    hidden = re.sub(r"//\S*@", "//***@", text)
    short = hidden if len(hidden) <= SHOWN_CHARACTERS else f"{hidden[:SHOWN_CHARACTERS]}..."
    return f"'{escaped(short)}'"


def escaped(text: str) -> str:
    """Make control characters visible: a message must not steer anybody's terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_service_link(name: str) -> bool:
    service = re.sub(r"_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)$", "", name)
    return service != name and f"{service}_SERVICE_HOST" in os.environ


def _env_file() -> dict[str, str]:
    path = Path(ENV_FILE)
    # A folder of that name is somebody's virtual environment.
    if not _is_there(path.is_file):
        return {}
    text = _contents(path)
    from dotenv import dotenv_values  # noqa: PLC0415 - few have such a file, and all would wait

    return {name: value for name, value in dotenv_values(stream=StringIO(text)).items() if value}


def _secrets(names: set[str]) -> dict[str, str]:
    named = os.environ.get(SECRETS_DIR_VARIABLE, "").strip()
    directory = Path(named or SECRETS_DIR)
    if not _is_there(directory.is_dir):
        if named:
            raise SettingsError(
                f"{SECRETS_DIR_VARIABLE} is no directory ({escaped(named)}).",
                "name the directory that holds the secret files, such as worker_amqp_url.",
            )
        return {}
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise _unreadable(directory, error.strerror) from None
    known = set(map(variable_of, names))
    return {path.name: _contents(path) for path in paths if path.name.upper() in known}


def _is_there(look: Callable[[], bool]) -> bool:
    try:
        return look()
    except OSError:
        # Hidden from this user, or of a name that no file can have.
        return False


def _contents(path: Path) -> str:
    if not _is_there(path.is_file):
        raise _unreadable(path, "it is no file; Docker makes a folder where a mounted file is not")
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise _unreadable(path, error.strerror) from None
    except UnicodeDecodeError:
        raise _unreadable(path, "it is not text in UTF-8") from None


def _unreadable(path: Path, reason: str | None) -> SettingsError:
    return SettingsError(
        f"A file with settings cannot be read ({escaped(str(path))}: {reason}).",
        "see that it is a text file and that this user may read it.",
    )
