"""The wire: what a message is, and why a delivery is not one.

Turns bytes into a typed `Message` or a `Rejected` value; raises nothing. Knows no AMQP, no SQL and
no kind: which kinds there are comes from the registry, as one pydantic union.
"""

import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Generic, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails

from worker.deliveries import Delivery, Reason, Rejected
from worker.errors import described
from worker.strict_json import require_strict

DETAIL_MAX_ERRORS = 3
JSON_TYPE = "application/json"
INT64_MAX = 2**63 - 1
# Both are remembered, so they are bounded: identifiers for each of many streams, times in a cache.
IDENTIFIER_MAX_CHARACTERS = 255
TIME_MAX_CHARACTERS = 64

# ISO 8601 as publishers write it. datetime.fromisoformat alone would also take week dates, bare
# dates and, from Python 3.13 on, hour 24: the same message must mean the same on every version.
_DATE_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[T ]([01]\d|2[0-3]):\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?", re.ASCII
)
_JSON_TYPE = re.compile(r"(application|text)/([\w.+-]+\+)?json", re.IGNORECASE)


# The times within one message are usually equal.
@lru_cache(maxsize=256)
def _utc(text: str) -> str:
    if text[4:20:3] == "--T::." and text[23:] == "Z" and text[11:13] < "24" and "\0" not in text:
        # As nearly every publisher writes it, to the millisecond: only the digits are in doubt.
        try:
            datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            return f"{text[:23]}000Z"
    if len(text) > TIME_MAX_CHARACTERS:
        raise ValueError(f"must have at most {TIME_MAX_CHARACTERS} characters")
    if not _DATE_TIME.fullmatch(text):
        raise ValueError("must be an ISO 8601 date-time, such as 2026-04-27T10:39:03.120Z")
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        try:
            moment = moment.astimezone(UTC)
        except OverflowError:
            raise ValueError("must lie in the years 1 to 9999 in UTC") from None
    return _text(moment)


def _text(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def now() -> str:
    """Return the worker's own clock as a `Timestamp`; no projection may ever read it."""
    return _text(datetime.now(UTC))


Timestamp = Annotated[str, AfterValidator(_utc)]
"""A moment as UTC text of fixed width, `2026-04-27T10:39:03.120000Z`: text order is time order.

Taken from any ISO 8601 date-time of at most 64 characters. A time without an offset is UTC; digits
beyond microseconds are cut.
"""

Identifier = Annotated[str, Field(min_length=1, max_length=IDENTIFIER_MAX_CHARACTERS)]
"""The name of something that a message is about, in 1 to 255 characters."""


class Payload(BaseModel):
    """What a kind of message says; every kind derives its own model from this one."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    event_id: Identifier


P = TypeVar("P", bound=Payload)


class Message(BaseModel, Generic[P]):
    """One fact about one event, as its publisher stated it."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    id: Identifier
    kind: str
    occurred_at: Timestamp
    sequence: Annotated[int, Field(ge=0, le=INT64_MAX)] = 0
    payload: P

    @property
    def event_id(self) -> str:
        """The stream to which this message belongs."""
        return self.payload.event_id


AnyMessage = Message[Payload]
Wire = TypeAdapter[AnyMessage]
"""The union of all registered kinds; `Registry.wire` builds it."""


class Arrival(NamedTuple):
    """A delivery with its message, or with the reason why it has none."""

    delivery: Delivery
    content: AnyMessage | Rejected


def canonical_json(value: object) -> str:
    """Return the one text of a JSON value: sorted keys, no spaces."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def same_content(one: str, other: str) -> bool:
    """Return whether two bodies say the same, whatever their spaces and the order of their keys."""
    return one == other or canonical_json(json.loads(one)) == canonical_json(json.loads(other))


def receive(wire: Wire, delivery: Delivery, max_bytes: int) -> Arrival:
    """Return a delivery with what `decode` makes of it."""
    return Arrival(delivery, decode(wire, delivery, max_bytes))


def decode(wire: Wire, delivery: Delivery, max_bytes: int) -> AnyMessage | Rejected:
    """Return the message in a delivery, or why there is none.

    A body of more than `max_bytes` is not read. Whatever is accepted can be stored as it was
    published: nothing in it is a lone surrogate, U+0000, NaN or a number beyond a double. Of equal
    keys in one object, the last one counts.
    """
    body = delivery.body
    if len(body) > max_bytes:
        detail = f"The body has {len(body):,} bytes; at most {max_bytes:,} are taken."
        return Rejected(Reason.TOO_LARGE, detail)
    if delivery.content_type != JSON_TYPE and not _is_json_type(delivery.content_type):
        detail = f"The content type is {delivery.content_type!r}; send application/json or none."
        return Rejected(Reason.NOT_JSON, detail)
    if not body:
        return Rejected(Reason.NOT_JSON, "The body is empty.")
    try:
        # Not by the adapter's own method, which is for all kinds of input and costs a tenth more.
        message: AnyMessage = wire.validator.validate_json(body)
        require_strict(body)
    except ValidationError as error:
        return _rejection(error)
    except ValueError as error:
        return Rejected(Reason.NOT_JSON, str(error))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a model's own validator, which may raise anything
        detail = f"The model of its payload failed: {described(error)}"
        return Rejected(Reason.BAD_PAYLOAD, detail)
    return message


@lru_cache(maxsize=64)
def _is_json_type(content_type: str | None) -> bool:
    if not content_type:
        return True
    return _JSON_TYPE.fullmatch(content_type.partition(";")[0].strip()) is not None


def _rejection(error: ValidationError) -> Rejected:
    errors = error.errors(include_url=False)
    first = errors[0]
    match first["type"]:
        case "json_invalid":
            return Rejected(Reason.NOT_JSON, f"{first['msg']}.")
        case "union_tag_invalid" if isinstance(kind := first["input"].get("kind"), str):
            known = first["ctx"]["expected_tags"].replace("'", "")
            return Rejected(
                Reason.UNKNOWN_KIND,
                f"No handler for kind {kind[:IDENTIFIER_MAX_CHARACTERS]!r}. Known kinds: {known}.",
            )
        case "union_tag_invalid":
            return Rejected(Reason.BAD_ENVELOPE, "kind: Input should be a valid string.")
        case "union_tag_not_found":
            return Rejected(Reason.BAD_ENVELOPE, "kind: Field required.")
    # The location is (kind, field of the envelope, field of the payload ...).
    is_in_payload = all(e["loc"][1:2] == ("payload",) and len(e["loc"]) > 2 for e in errors)
    detail = "; ".join(map(_sentence, errors[:DETAIL_MAX_ERRORS]))
    return Rejected(Reason.BAD_PAYLOAD if is_in_payload else Reason.BAD_ENVELOPE, f"{detail}.")


def _sentence(error: ErrorDetails) -> str:
    field = ".".join(str(part) for part in error["loc"][1:])
    return f"{field or 'body'}: {error['msg'].removeprefix('Value error, ')}"
