"""Statements that wait, grouped by their text, so that a batch runs in a few calls of SQLite.

Promise: every stream's statements stand in the order in which its handlers gave them. Those of
different streams may overtake each other, which the contract of handlers makes invisible.
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache

from worker.store.driver import Parameters

Group = tuple[str, list[Parameters]]
"""One text, with the parameters of each statement in the group."""

_QUOTED = re.compile(
    r"""--[^\n]* | /\*.*?(\*/|\Z) | '([^']|'')*' | "([^"]|"")*" | `([^`]|``)*` | \[[^\]]*\]""",
    re.VERBOSE | re.DOTALL,
)
# What would end the transaction of all the batch (sqlite.org/lang_conflict.html, ROLLBACK).
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


# Few texts, asked for again and again.
@lru_cache(maxsize=256)
def require_harmless(sql: str) -> None:
    """Raise `ValueError` for a statement that would end or begin a transaction."""
    if _ENDING.search(keywords(sql)):
        raise ValueError(
            f"A handler's statement must not begin or end transactions: {' '.join(sql.split())}"
        )


class Groups:
    """The statements of many streams, in few groups of one text each."""

    def __init__(self) -> None:
        """Begin empty."""
        self._in_order: list[Group] = []
        self._places: dict[str, list[int]] = {}
        """The text -> where its groups stand."""
        self._last: dict[str, int] = {}
        """The stream -> where its last statement stands."""

    def add(self, stream: str, sql: str, parameters: Parameters) -> None:
        """Put a statement into the first group of its text that does not stand too early."""
        places = self._places.get(sql)
        if places is None:
            require_harmless(sql)
            places = self._places[sql] = []
        index = bisect_left(places, self._last.get(stream, 0))
        if index == len(places):
            places.append(len(self._in_order))
            self._in_order.append((sql, []))
        place = self._last[stream] = places[index]
        self._in_order[place][1].append(parameters)

    def take(self) -> list[Group]:
        """Return the groups in the order in which they are to be run, and begin empty again."""
        taken, self._in_order = self._in_order, []
        self._places, self._last = {}, {}
        return taken
