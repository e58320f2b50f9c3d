"""JSON that means the same to everyone who reads it, and that the database can keep.

A parser may keep the first or the last of two equal keys, and read a number beyond 64 bits as it
likes (RFC 8259, sections 4 and 6). What is ambiguous so is refused here.
"""

import json
import re
from collections import Counter
from math import isfinite
from typing import Any, NoReturn

import jiter

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)

# An escaped U+0000 is a backslash before "u0000" that is not itself escaped. SQLite's own text
# functions stop at U+0000 (sqlite.org/nulinstr.html), so no text may hold one.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
# What is looked for outside of strings: a number of many digits, and one with an exponent.
_SHAPE = bytes.maketrans(b"123456789E", b"000000000e")
_MANY_DIGITS, _EXPONENT = b"0" * 19, b"0e"


def require_strict(body: bytes) -> None:
    """Raise `ValueError`, with a sentence, for JSON text that is not strict.

    Refuses equal keys in one object, U+0000, NaN, and numbers beyond 64 bits. The text must have
    been parsed by jiter or pydantic before, whose limits (depth, surrogates, UTF-8) hold here, too.
    """
    if not _is_plain(body):
        _DECODER.decode(body.decode())
        if _NUL.search(body):
            raise ValueError("A string holds U+0000, which the database cannot keep.")


def _is_plain(body: bytes) -> bool:
    """Tell whether nothing can be wrong: a quick look, which most messages pass.

    It takes a third of the time of the slow one, which says what is wrong.
    """
    if b"\\" in body:
        return False
    try:
        jiter.from_json(body, allow_inf_nan=False, cache_mode="keys", catch_duplicate_keys=True)
    except ValueError:
        return False
    # Without escapes, every other piece is the inside of a string.
    outside = b" ".join(body.split(b'"')[::2]).translate(_SHAPE)
    return _MANY_DIGITS not in outside and _EXPONENT not in outside


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"The key {twice[:255]!r} stands twice in one object.")
    return members


def _int64(digits: str) -> int:
    # 19 digits and a sign hold every 64-bit number; int() of much longer text costs quadratic time.
    if len(digits) > 20 or not INT64_MIN <= int(digits) <= INT64_MAX:
        raise ValueError(f"The number {digits[:20]}... does not fit into 64 bits.")
    return int(digits)


def _finite(digits: str) -> float:
    if not isfinite(number := float(digits)):
        raise ValueError(f"The number {digits[:40]} is beyond a double.")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON (RFC 8259, section 6).")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=_int64,
    parse_float=_finite,
    parse_constant=_refuse_constant,
)
