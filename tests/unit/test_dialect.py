from collections import UserDict
from enum import StrEnum
from typing import Any

import pytest

from worker.store.postgres.dialect import translated


class Word(StrEnum):
    """Text that is more than text."""

    A = "a"


class TestTranslated:
    @pytest.mark.parametrize(
        ("sql", "expected"),
        [
            ("VALUES (?, ?)", "VALUES ($1, $2)"),
            ("VALUES (?2, ?1, ?)", "VALUES ($2, $1, $3)"),
            ("VALUES (:a, :b, :a)", "VALUES ($1, $2, $1)"),
            ("SELECT '?', ':a', 'it''s ?', ?", "SELECT '?', ':a', 'it''s ?', $1"),
            ('SELECT "?" FROM t WHERE x = ?', 'SELECT "?" FROM t WHERE x = $1'),
            ("SELECT ? -- why?\n, ?", "SELECT $1 -- why?\n, $2"),
            ("SELECT ? /* ? :a */, ?", "SELECT $1 /* ? :a */, $2"),
            ("SELECT ?::text, :a::bigint", "SELECT $1::text, $1::bigint"),
            ("SELECT $$ ? $$, $q$ :a $$ $q$, ?", "SELECT $$ ? $$, $q$ :a $$ $q$, $1"),
            ("SELECT x[1:2], y[a:b]", "SELECT x[1:2], y[a:b]"),
            ("SELECT $1", "SELECT $1"),
        ],
    )
    def test_has_postgresqls_parameters(self, sql: str, expected: str) -> None:
        """Nothing else changes: not in quotes, comments, casts and slices."""
        assert translated(sql).sql == expected


class TestBound:
    def test_is_in_order(self) -> None:
        """Names may come in any order, and more of them than are asked for."""
        statement = translated("VALUES (:b, :a, :b)")

        assert statement.bound({"a": 1, "b": 2, "c": 3}) == [2, 1]
        assert statement.bound(UserDict(a=1, b=2)) == [2, 1]
        assert translated("VALUES (?, ?)").bound((1, None)) == (1, None)

    @pytest.mark.parametrize(
        ("value", "plain"),
        [(Word.A, "a"), (True, True), (bytearray(b"x"), b"x"), (memoryview(b"x"), b"x"),
         (type("N", (int,), {})(3), 3), (type("F", (float,), {})(0.5), 0.5)],
    )  # fmt: skip
    def test_is_of_plain_types(self, value: Any, plain: object) -> None:
        """A class derived from a plain type counts as that type."""
        (found,) = translated("VALUES (?)").bound([value])

        assert (found, type(found)) == (plain, type(plain))

    @pytest.mark.parametrize(
        ("sql", "parameters", "error"),
        [("VALUES (:a)", {"b": 1}, KeyError), ("VALUES (:a)", (1,), TypeError),
         ("VALUES (?)", (object(),), TypeError), ("VALUES (?)", ({},), TypeError)],
    )  # fmt: skip
    def test_is_refused(self, sql: str, parameters: Any, error: type[Exception]) -> None:
        """What is missing, and what no column can hold, fails before it reaches the driver."""
        with pytest.raises(error):
            translated(sql).bound(parameters)
