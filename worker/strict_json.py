"""JSON that the database can keep as it was published.

Pydantic takes three things that cannot be kept so: U+0000 in a string, NaN and infinities, and
numbers beyond a double, which would become infinities.
"""

import json
import re
from math import isfinite
from typing import NoReturn

# An escaped U+0000 is a backslash before "u0000" that is not itself escaped. SQLite's own text
# functions stop at U+0000 (sqlite.org/nulinstr.html), so no text may hold one.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
# What is looked for outside of strings: a number with an exponent, or of so many digits that it may
# be beyond a double, and the first letters of NaN and Infinity.
_SHAPE = bytes.maketrans(b"123456789ENI", b"000000000e##")
_EXPONENT, _MANY_DIGITS, _CONSTANT = b"0e", b"0" * 309, b"#"


def require_strict(body: bytes) -> None:
    """Raise `ValueError`, with a sentence, for JSON text that the database cannot keep.

    The text must have been parsed by pydantic, whose limits (depth, digits, surrogates, UTF-8) hold
    here, too.
    """
    if not _is_plain(body):
        _DECODER.decode(body.decode())
        if _NUL.search(body):
            raise ValueError("A string holds U+0000, which the database cannot keep.")


def _is_plain(body: bytes) -> bool:
    """Tell by a quick look, which most messages pass, that nothing can be wrong."""
    if b"\\" in body:
        return False
    # Without escapes, every other piece is the inside of a string.
    outside = b" ".join(body.split(b'"')[::2]).translate(_SHAPE)
    return _EXPONENT not in outside and _CONSTANT not in outside and _MANY_DIGITS not in outside


def _finite(digits: str) -> float:
    if not isfinite(number := float(digits)):
        raise ValueError(f"The number {digits[:40]} is beyond a double.")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON (RFC 8259, section 6).")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)
