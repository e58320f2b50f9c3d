"""JSON that the database can store as it was published.

Pydantic accepts three things that cannot be stored that way: U+0000 in a string, NaN and
infinities, and numbers that are too large for a double, which would become infinities.
"""

import json
import re
from math import isfinite
from typing import NoReturn

# An escaped U+0000 is a backslash before "u0000" that is not itself escaped. SQLite's own text
# functions stop at U+0000 (sqlite.org/nulinstr.html), so no text may contain it.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
# Outside strings, the quick check looks for numbers with an exponent, for numbers with so many
# digits that a double may be too small, and for the first letters of NaN and Infinity.
_SHAPE = bytes.maketrans(b"123456789ENI", b"000000000e##")
_EXPONENT, _MANY_DIGITS, _CONSTANT = b"0e", b"0" * 309, b"#"


def require_strict(body: bytes) -> None:
    """Raise `ValueError`, with a sentence, for JSON text that the database cannot store.

    Pydantic must have parsed the text before, because its limits (depth, digits, surrogates, UTF-8)
    are relied on here.
    """
    if not _is_plain(body):
        _DECODER.decode(body.decode())
        if _NUL.search(body):
            raise ValueError("A string contains U+0000, which the database cannot store.")


def _is_plain(body: bytes) -> bool:
    """Return whether a quick check, which most messages pass, finds nothing that may be wrong."""
    if b"\\" in body:
        return False
    # Without escapes, every second piece is the inside of a string.
    outside = b" ".join(body.split(b'"')[::2]).translate(_SHAPE)
    return _EXPONENT not in outside and _CONSTANT not in outside and _MANY_DIGITS not in outside


def _finite(digits: str) -> float:
    if not isfinite(number := float(digits)):
        raise ValueError(f"The number {digits[:40]} is too large for a double.")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON (RFC 8259, section 6).")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)
