"""Bodies that are not messages: each with its reason and a part of its error text."""

from typing import Any

from tests.builders import Message, body, planned, reverted
from worker.deliveries import Reason

BACKSLASH = "\\"
NOT_JSON, BAD_ENVELOPE = Reason.NOT_JSON, Reason.BAD_ENVELOPE
UNKNOWN_KIND, BAD_PAYLOAD = Reason.UNKNOWN_KIND, Reason.BAD_PAYLOAD


def without(field: str) -> Message:
    return {name: value for name, value in planned("e-1").items() if name != field}


def with_raw(text: str, place: str) -> bytes:
    """Insert JSON text unchanged into an unknown field, props, or a known field."""
    message = planned("e-1")
    match place:
        case "props":
            message["payload"]["props"] = {"deep": [{"er": "@@"}]}
        case "unknown" | "sequence" | "id":
            message["more" if place == "unknown" else place] = "@@"
        case "payload":
            message["payload"]["more"] = "@@"
    return body(message).replace(b'"@@"', text.encode(errors="surrogatepass"))


def with_key(text: str) -> bytes:
    return body(planned("e-1", more={"@@": 1})).replace(b"@@", text.encode())


def with_raw_object(text: str, place: str) -> bytes:
    """Insert the members of a JSON object unchanged."""
    return with_raw(f"{{{text}}}", place)


WHOLE = body(planned("e-1"))
HUGE = "9" * 5_000
LONG = "\N{GRINNING FACE}" * 256
LONG_TIME = f"2026-04-27T10:39:03.{'0' * 44}Z"

BAD_JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "spaces": (b" ", "EOF"),
    "truncated": (WHOLE[:-1], "line 1 column"),
    "trailing": (WHOLE + b"}", "trailing"),
    "two": (WHOLE + WHOLE, "trailing"),
    "byte order mark": (b"\xef\xbb\xbf" + WHOLE, "line 1 column 1"),
    "utf-16": (WHOLE.decode().encode("utf-16"), "line 1 column 1"),
    "invalid utf-8": (WHOLE.replace(b"chat-1", b"chat-\xff"), "unicode"),
    "overlong utf-8": (WHOLE.replace(b"chat-1", b"chat-\xc0\x80"), "unicode"),
    "raw control character": (WHOLE.replace(b"chat-1", b"chat-\x01"), "control character"),
    "arrays in arrays": (b"[" * 10_000, "recursion limit"),
    "objects in objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "recursion limit"),
    "depth in props": (with_raw("[" * 10_000 + "]" * 10_000, "props"), "recursion limit"),
}  # fmt: skip
BAD_NUMBERS = {
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e999": "too large for a double",
    "-1e999": "too large for a double",
    f"1{'0' * 400}.5": "too large for a double",
    HUGE: "out of range",
}
BAD_STRINGS = {
    r"\ud800": "hex escape",
    r"\udc00": "hex escape",
    r"\ud800\ud800": "surrogate",
    "\ud800": "unicode",
    r"\u0000": "U+0000",
    r"a\u0000b": "U+0000",
    BACKSLASH * 2 + r"\u0000": "U+0000",
}
NO_STRINGS: tuple[Any, ...] = (1, None, True, 1.5, [], {})
NO_SEQUENCES: tuple[Any, ...] = (-1, 2**63, "1", 1.0, 1.5, True, None, [])
BAD_ENVELOPES: dict[str, tuple[bytes | Message, str]] = {
    "array": (b"[]", "body: Input should be an object"),
    "number": (b"1", "body: Input should be an object"),
    "string": (b'"event_planned"', "body: Input should be an object"),
    "null": (b"null", "body: Input should be an object"),
    **{f"no {f}": (without(f), f"{f}: Field required") for f in ("id", "kind", "payload")},
    "no occurred_at": (without("occurred_at"), "occurred_at: Field required"),
    "empty id": (planned("e", id=""), "id: String should have at least 1"),
    "long id": (planned("e", id=LONG), "id: String should have at most 255"),
    "long time": (planned("e", occurred_at=LONG_TIME), "occurred_at: must have at most 64"),
    "payload array": (planned("e") | {"payload": []}, "payload: Input should be an object"),
    "payload null": (planned("e") | {"payload": None}, "payload: Input should be an object"),
    "payload text": (planned("e") | {"payload": "{}"}, "payload: Input should be an object"),
    **{f"id {v}": (planned("e", id=v), "id: Input") for v in NO_STRINGS},
    **{f"sequence {v!r}": (planned("e", sequence=v), "sequence: Input should be")
       for v in NO_SEQUENCES},
    **{f"kind {v!r}": (planned("e") | {"kind": v}, "kind: Input should be a valid string")
       for v in NO_STRINGS},
}  # fmt: skip
BAD_KINDS = ("event_startd", "", "EVENT_PLANNED", "event_planned ", "planned")
FIELDS: tuple[tuple[str, Any, str], ...] = (
    ("event_id", "", "at least 1 character"),
    ("event_id", 1, "valid string"),
    ("event_id", None, "valid string"),
    ("event_id", LONG, "at most 255 characters"),
    ("chat_id", "", "at least 1 character"),
    ("chat_id", 7, "valid string"),
    ("chat_id", LONG, "at most 255 characters"),
    ("kind", [], "valid string"),
    ("kind", LONG, "at most 255 characters"),
    ("props", [], "an object"),
    ("props", None, "an object"),
    ("props", "{}", "an object"),
    ("planned_for", 1745750343, "valid string"),
    ("planned_for", "tomorrow", "ISO 8601"),
    ("planned_for", LONG_TIME, "at most 64 characters"),
)
BAD_PAYLOADS: dict[str, tuple[bytes | Message, str]] = {
    **{f"{f} {v!r:.60}": (planned("e", payload={f: v}), f"payload.{f}: ") for f, v, _ in FIELDS},
    "empty": (planned("e") | {"payload": {}}, "payload.chat_id: Field required"),
    "status": (
        reverted("e", "done"),
        "'planned', 'active', 'completed', 'cancelled' or 'expired'",
    ),
}  # fmt: skip

BAD: dict[str, tuple[bytes | Message, Reason, str]] = {
    **{f"json: {n}": (b, NOT_JSON, d) for n, (b, d) in BAD_JSON.items()},
    **{f"{n[:30]} in {place}": (with_raw(n, place), NOT_JSON, d)
       for n, d in BAD_NUMBERS.items() for place in ("unknown", "props", "payload")},
    **{f"{s!a} in {place}": (with_raw(f'"{s}"', place), NOT_JSON, d)
       for s, d in BAD_STRINGS.items() for place in ("unknown", "props", "id")},
    **{f"{s!a} in a key": (with_key(s), NOT_JSON, d)
       for s, d in BAD_STRINGS.items() if s.isascii()},
    **{f"envelope: {n}": (b, BAD_ENVELOPE, d) for n, (b, d) in BAD_ENVELOPES.items()},
    **{f"kind: {k!r}": (planned("e") | {"kind": k}, UNKNOWN_KIND, f"{k!r}. Known kinds: event_ca")
       for k in BAD_KINDS},
    **{f"payload: {n}": (b, BAD_PAYLOAD, d) for n, (b, d) in BAD_PAYLOADS.items()},
}  # fmt: skip
