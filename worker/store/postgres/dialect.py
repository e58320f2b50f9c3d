"""Handlers' SQL as PostgreSQL reads it: `?`, `?1` and `:name` become `$1`."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import isnan
from typing import Any, NamedTuple

from worker.store.statements import Parameters, Value

# Of what is quoted, nothing changes. `::` is a cast, and `:` in a slice follows a character of a
# name or a number.
_TOKEN = re.compile(
    r"""
    (?P<kept> --[^\n]* | /\*.*?(?:\*/|\Z) | '(?:[^']|'')*' | "(?:[^"]|"")*"
      | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ | :: )
    | \?(?P<number>\d*)
    | (?<![\w:\]])[:@](?P<name>[A-Za-z_]\w*)
    """,
    re.VERBOSE | re.DOTALL,
)
# Lists are the store's own: arrays, of which no column of a projection can be one.
_PLAIN = {str, int, bytes, bool, type(None), list}


class Translated(NamedTuple):
    """A statement as PostgreSQL reads it."""

    sql: str
    names: tuple[str, ...] = ()
    """The name of each parameter in order; empty where they are numbered."""

    def bound(self, parameters: Parameters) -> Sequence[Value]:
        """Return the parameters in order.

        Raises `TypeError` for a value that no column can have, and `KeyError` for one that is
        missing.
        """
        if self.names:
            if not isinstance(parameters, Mapping):
                raise TypeError(f"The statement names its parameters: {', '.join(self.names)}")
            parameters = [parameters[name] for name in self.names]
        elif isinstance(parameters, Mapping):
            parameters = ()
        # The driver must not run code of a class that it does not know.
        if not {*map(type, parameters)} <= _PLAIN:
            return [_plain(value) for value in parameters]
        return parameters


# There are few texts, and each comes again and again.
@lru_cache(maxsize=1024)
def translated(sql: str) -> Translated:
    """Return a statement with PostgreSQL's parameters in place of SQLite's."""
    names: dict[str, int] = {}
    last = 0

    def parameter(found: re.Match[str]) -> str:
        nonlocal last
        if found["kept"] is not None:
            return found["kept"]
        if name := found["name"]:
            return f"${names.setdefault(name, len(names) + 1)}"
        number = int(found["number"] or last + 1)
        last = max(last, number)
        return f"${number}"

    return Translated(_TOKEN.sub(parameter, sql), tuple(names))


def _plain(value: Any) -> Any:  # noqa: ANN401 - a `Value`, or a list of the store's own
    """Return a value of a built-in type with the same content; runs no code of its class."""
    if value is None or type(value) is list:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        # As SQLite stores it: without NaN, and without the sign of zero.
        plain = float.__float__(value)
        return None if isnan(plain) else plain + 0.0
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(memoryview(value))
    raise TypeError(f"A statement's parameter must not be of the type {type(value).__name__}")
