"""Where settings come from: the environment, then `.env`, then a directory of secret files.

Returns text, which settings.py validates. An empty value counts as unset, because an unset variable
becomes an empty one in a compose file. Imports very little, because `healthcheck` runs every few
seconds.
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
CORRECT = "correct them in the environment, in .env, or in the secret files."


class SettingsError(WorkerError):
    """A setting cannot be used."""


def read(names: set[str]) -> dict[str, str]:
    """Return the values of those of these settings that are set; the first source wins.

    Raises `SettingsError` for a file that cannot be read, and for a value that is not text.
    """
    found: dict[str, str] = {}
    for source in (_secrets(names), _env_file(), os.environ):
        for variable, text in source.items():
            name = variable.lower().removeprefix(PREFIX.lower())
            if name in names and variable.upper() == variable_of(name) and text.strip():
                found[name] = text.strip()
    for name, text in found.items():
        # Bytes that are not UTF-8 arrive as lone surrogates. Several URLs may be on several lines.
        if not ("".join(text.split()) if name in MULTILINE else text).isprintable():
            raise SettingsError(
                f"{variable_of(name)} contains control characters, or bytes that are not UTF-8.",
                "type the value again: invisible characters may have been copied with it.",
            )
    return found


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def unknown_variables(names: set[str]) -> list[str]:
    """Return the variables that have the worker's prefix but are not settings.

    Those that Kubernetes sets for a Service whose name begins with `worker` are not among them.
    """
    variables = {*os.environ, *_env_file()}
    known = {*map(variable_of, names), SECRETS_DIR_VARIABLE}
    return sorted(
        escaped(name)
        for name in variables
        if name.startswith(PREFIX) and name.upper() not in known and not _is_service_link(name)
    )


def value_shown(text: str) -> str:
    """Return a value for display: short, on one line, and without the passwords of URLs."""
    hidden = re.sub(r"//\S*@", "//***@", text)
    short = hidden if len(hidden) <= SHOWN_CHARACTERS else f"{hidden[:SHOWN_CHARACTERS]}..."
    return f"'{escaped(short)}'"


def escaped(text: str) -> str:
    """Return text with control characters escaped, because they could control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_service_link(name: str) -> bool:
    service = re.sub(r"_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)$", "", name)
    return service != name and f"{service}_SERVICE_HOST" in os.environ


def _env_file() -> dict[str, str]:
    path = Path(ENV_FILE)
    # A folder named .env is a virtual environment.
    if not _is_there(path.is_file):
        return {}
    text = _contents(path)
    from dotenv import dotenv_values  # noqa: PLC0415 - slow, and few have such a file

    return {name: value for name, value in dotenv_values(stream=StringIO(text)).items() if value}


def _secrets(names: set[str]) -> dict[str, str]:
    named = os.environ.get(SECRETS_DIR_VARIABLE, "").strip()
    directory = Path(named or SECRETS_DIR)
    if not _is_there(directory.is_dir):
        if named:
            raise SettingsError(
                f"{SECRETS_DIR_VARIABLE} is not a directory ({escaped(named)}).",
                "set it to the directory that holds the secret files, such as worker_amqp_url.",
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
        # This user may not see it, or its name is not valid.
        return False


def _contents(path: Path) -> str:
    if not _is_there(path.is_file):
        raise _unreadable(
            path, "it is not a file; Docker creates a folder if the file to mount is missing"
        )
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise _unreadable(path, error.strerror) from None
    except UnicodeDecodeError:
        raise _unreadable(path, "it is not text in UTF-8") from None


def _unreadable(path: Path, reason: str | None) -> SettingsError:
    return SettingsError(
        f"A settings file cannot be read ({escaped(str(path))}: {reason}).",
        "check that it is a text file and that this user may read it.",
    )
