"""The queue of statements, grouped by their text, so that a batch runs in a few calls of SQLite.

Promise: every stream's statements stand in the order in which its handlers gave them. Those of
different streams may overtake each other, which the contract of handlers makes invisible. The
queue knows the author of each statement, so that a failure is blamed on the right message.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from worker.store.failures import Author, PlainAuthor

Value = str | int | float | bytes | None
Parameters = Sequence[Value] | Mapping[str, Value]


class Row(Protocol):
    """A row of a query: its values in order, each also by the name of its column."""

    def __getitem__(self, column: int | str, /) -> Any:  # noqa: ANN401 - a `Value`, as queried
        """Return the value of a column, by place or by name."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the values."""

    def __len__(self) -> int:
        """Return the number of columns."""

    def keys(self) -> Iterable[str]:
        """Return the names of the columns."""


class Group(NamedTuple):
    """Statements with the same text, and the parameters of each."""

    sql: str
    rows: Iterable[Parameters] | None
    """None for a statement that runs once, without parameters."""
    authors: Sequence[PlainAuthor] = ()
    """The author of each; empty for statements of the store itself."""


_QUOTED = re.compile(
    r"""--[^\n]* | /\*.*?(\*/|\Z) | '([^']|'')*' | "([^"]|"")*" | `([^`]|``)*` | \[[^\]]*\]""",
    re.VERBOSE | re.DOTALL,
)
# These would end the whole batch's transaction (sqlite.org/lang_conflict.html, ROLLBACK).
_ENDING = re.compile(
    r"^[\s;]*(BEGIN|COMMIT|END|ROLLBACK|SAVEPOINT|RELEASE)\b|\bOR\s+ROLLBACK\b", re.IGNORECASE
)


def keywords(sql: str) -> str:
    """Return a statement without its comments, its strings and its quoted names."""
    return _QUOTED.sub(" ", sql)


def copied(parameters: Parameters) -> Parameters:
    """Return a copy that stays as it is when the original changes."""
    if isinstance(parameters, Mapping):
        return dict(parameters)
    if isinstance(parameters, Sequence):
        return tuple(parameters)
    raise TypeError(
        f"A statement's parameters must be a sequence or a mapping, not {type(parameters).__name__}"
    )


# There are few texts, and each is checked again and again.
@lru_cache(maxsize=256)
def require_harmless(sql: str) -> None:
    """Raise `ValueError` for a statement that would end or begin a transaction."""
    if _ENDING.search(keywords(sql)):
        raise ValueError(
            f"A handler's statement must not begin or end transactions: {' '.join(sql.split())}"
        )


class Statements:
    """The statements that wait: the store's own, and between them groups of the handlers'."""

    def __init__(self) -> None:
        """Begin empty."""
        self._earlier: list[Group] = []
        """Those before the groups that may still grow."""
        self.author: PlainAuthor = Author("")
        """The author of the statements that are added for handlers."""
        self._begin_groups()

    def _begin_groups(self) -> None:
        self._growing: list[tuple[str, list[Parameters], list[PlainAuthor]]] = []
        self._places: dict[str, list[int]] = {}
        """Text -> the places of its groups in `_growing`."""
        self._last: dict[str, int] = {}
        """Stream -> the place of its last statement's group."""

    def add(self, sql: str, rows: Iterable[Parameters] | None) -> None:
        """Add a statement of the store itself, behind all that wait."""
        self._earlier = [*self.take(), Group(sql, rows)]

    def add_for_handler(self, sql: str, parameters: Parameters) -> None:
        """Add a statement of the handler that runs, behind those of its stream.

        It joins the first group of its text that does not come before the stream's last statement.

        Raises `ValueError` for a statement that would begin or end a transaction.
        """
        places = self._places.get(sql)
        if places is None:
            require_harmless(sql)
            places = self._places[sql] = []
        author = self.author
        stream = author[0]
        index = bisect_left(places, self._last.get(stream, 0))
        if index == len(places):
            places.append(len(self._growing))
            self._growing.append((sql, [], []))
        place = self._last[stream] = places[index]
        _, rows, authors = self._growing[place]
        rows.append(parameters)
        authors.append(author)

    def take(self) -> list[Group]:
        """Return all waiting statements in the order in which they must run, and forget them."""
        taken = [*self._earlier, *(Group(*each) for each in self._growing)]
        self._earlier = []
        self._begin_groups()
        return taken
