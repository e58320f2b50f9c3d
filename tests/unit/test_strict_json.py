import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.strict_json import require_strict

# Texts that look invalid, but are valid because they are inside strings.
HARMLESS = ("1e999", ",1e999,", "9" * 40, "NaN", ':"', "e", "true", "\u2028", "0e", "\\", "é")
texts = st.one_of(st.text(max_size=20), st.sampled_from(HARMLESS))
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.sampled_from([0.1, 1e22, 1e300, -1e-300, 1e16]),
        texts,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=12,
)


def is_fine(value: Any) -> bool:
    """Return whether the value's text must be accepted, judged by the value itself."""
    match value:
        case str():
            return "\0" not in value
        case int() | None:
            return True
        case float():
            return math.isfinite(value)
        case list():
            return all(map(is_fine, value))
        case _:
            return all(is_fine(name) and is_fine(each) for name, each in value.items())


class TestStrictness:
    @given(values, st.sampled_from([(True, None), (False, None), (False, 1)]))
    def test_is_that_of_the_value(self, value: Any, written: tuple[bool, int | None]) -> None:
        """The quick check accepts only strict JSON, and the slow one refuses nothing else."""
        is_ascii, indent = written
        body = json.dumps({"v": value}, ensure_ascii=is_ascii, indent=indent)
        refused = False
        try:
            require_strict(body.encode(errors="replace"))
        except ValueError:
            refused = True

        assert refused != is_fine(value)

    @pytest.mark.parametrize(
        "text",
        ["1e999", "-1E+400", "1.5e308000", "[1e0000400]", "1" + "0" * 400 + ".5", "NaN",
         "-Infinity"],
    )  # fmt: skip
    def test_refuses(self, text: str) -> None:
        """They are refused wherever they stand, and with any spaces."""
        for body in (f'{{"v":{text}}}', f'{{"v" : {text} }}', f'{{"v":[true,{text}]}}'):
            with pytest.raises(ValueError, match=r"too large|not JSON"):
                require_strict(body.encode())

    @pytest.mark.parametrize(
        "text",
        ["9223372036854775808", "1" + "0" * 400, "1e308", '{"a":1,"a":2}', "0e0", "1E5", "true",
         "false", '"1e999"', f'"{"1" * 40}"', '"a\\n"', '"\\\\u0000"', "0." + "1" * 40],
    )  # fmt: skip
    def test_takes(self, text: str) -> None:
        """They look similar, but are strict JSON."""
        require_strict(f'{{"v":{text}}}'.encode())
