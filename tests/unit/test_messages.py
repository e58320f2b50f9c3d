import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders import Message, body, completed, planned, started
from tests.unit.bad_messages import (
    BACKSLASH,
    BAD,
    FIELDS,
    HUGE,
    with_key,
    with_raw,
)
from tests.unit.projecting import CAP, audited, project, rows, verdicts
from worker.deliveries import Delivery, Reason, Rejected
from worker.messages import AnyMessage, decode
from worker.projections import load


def decoded(raw: bytes | Message, content_type: str | None = None) -> AnyMessage | Rejected:
    whole = raw if isinstance(raw, bytes) else body(raw)
    return decode(load().wire, Delivery(whole, content_type=content_type), CAP)


def is_message(raw: bytes | Message, content_type: str | None = None) -> bool:
    return not isinstance(decoded(raw, content_type), Rejected)


class TestBadMessages:
    @pytest.mark.parametrize(("raw", "reason", "detail"), BAD.values(), ids=BAD)
    def test_are_rejected_with_the_reason(
        self, raw: bytes | Message, reason: Reason, detail: str
    ) -> None:
        """Each gets its reason code and a sentence that says where the mistake is."""
        rejected = decoded(raw)

        assert isinstance(rejected, Rejected)
        assert rejected.reason is reason
        assert detail in rejected.detail
        assert rejected.detail.endswith(".")
        assert len(rejected.detail) < 1_000

    async def test_cost_their_neighbours_nothing(self, tmp_path: Path) -> None:
        """A good message between two bad ones of the same batch is committed."""
        good = [planned(f"e-{number:03}") for number in range(len(BAD))]
        pairs = zip(good, BAD.values(), strict=True)
        expected = [v for _, reason, _ in BAD.values() for v in ("applied", reason.value)]

        outcomes = await project(tmp_path / "p.db", [x for g, bad in pairs for x in (g, bad[0])])

        assert verdicts(outcomes) == expected
        assert len(rows(tmp_path / "p.db")) == len(BAD)
        assert rows(tmp_path / "p.db", "SELECT count(*) FROM log") == [(len(BAD),)]

    @pytest.mark.parametrize(("field", "value", "detail"), FIELDS)
    def test_of_a_bad_payload_name_the_field(self, field: str, value: Any, detail: str) -> None:
        """The sentence names the field and says what it should have been."""
        rejected = decoded(planned("e", payload={field: value}))

        assert isinstance(rejected, Rejected)
        assert rejected.detail.startswith(f"payload.{field}: ")
        assert detail in rejected.detail

    def test_of_a_bad_envelope_are_not_called_bad_payloads(self) -> None:
        """Whoever fixes the message should look at the envelope first."""
        rejected = decoded(planned("e", id="") | {"payload": {}})

        assert isinstance(rejected, Rejected)
        assert rejected.reason is Reason.BAD_ENVELOPE


class TestDetail:
    @pytest.mark.parametrize(
        "raw",
        [
            planned("e") | {"kind": "s3cret " * 9_000},
            planned("e") | {"kind": "\U000e0001" * 2_000},
            planned("e", id="s3cret " * 9_000),
            planned("e", payload={"chat_id": ["s3cret " * 9_000]}),
            planned("e", payload={"planned_for": "s3cret " * 9_000}),
            planned("s3cret " * 150_000),
            planned("e", occurred_at="s3cret " * 9_000),
            with_raw(HUGE, "props"),
        ],
        ids=["kind", "escaped kind", "id", "field", "time", "event", "occurred_at", "number"],
    )
    def test_stays_short(self, raw: bytes | Message) -> None:
        """A huge input is not echoed: the sentence fits into a header and a log line."""
        rejected = decoded(raw)

        assert isinstance(rejected, Rejected)
        assert len(rejected.detail) <= 2_000
        assert rejected.detail.count("s3cret") < 50

    async def test_of_a_conflict_stays_short(self, tmp_path: Path) -> None:
        """It names the message and the event, both of which have bounded ids."""
        longest = "\N{GRINNING FACE}" * 255

        (_, conflict) = await project(
            tmp_path / "p.db", [planned(longest, id=longest), started(longest, id=longest)]
        )

        assert conflict.rejected is not None
        assert len(conflict.rejected.detail) <= 2_000

    async def test_of_a_handler_stays_short(self) -> None:
        """However long an exception's text is, the sentence is truncated."""
        assert len(Rejected(Reason.HANDLER_FAILED, "x" * 5_000).detail) == 2_000


class TestGoodMessages:
    @pytest.mark.parametrize("place", ["unknown", "props", "payload"])
    @pytest.mark.parametrize(
        "text",
        [
            str(2**63 - 1), str(-(2**63)), "-0", "-0.0", "1.5e300", "1e-999", "null", "true", "[]",
            "[" * 150 + "]" * 150, r'"\ud83d\ude00"', r'"\u001f"', '"\u2028"',
            f'"{BACKSLASH * 2}u0000"', f'"{BACKSLASH * 4}u0000"', '{"a": {"a": 1}, "A": 2}',
            str(2**64), "-" + "9" * 4_300, "1e308", "0." + "1" * 400,
        ],
    )  # fmt: skip
    def test_hold_any_other_json(self, text: str, place: str) -> None:
        """Everything that JSON and the database can hold is accepted, at least 150 levels deep."""
        assert is_message(with_raw(text, place))

    def test_hold_keys_of_any_characters(self) -> None:
        """A key may contain the same characters as a value."""
        assert is_message(with_key(BACKSLASH * 2 + "u0000"))
        assert is_message(with_key("😀'%"))

    @pytest.mark.parametrize("length", [1, 255])
    def test_have_identifiers_of_some_length(self, length: int) -> None:
        """They have 1 to 255 characters, whatever their number of bytes."""
        text = "😀" * length

        assert is_message(planned(text, id=text, payload={"chat_id": text, "kind": text}))

    def test_have_times_of_some_length(self) -> None:
        """They have up to 64 characters; digits beyond microseconds are cut."""
        longest = f"2026-04-27T10:39:03.{'1' * 38}+00:00"
        message = decoded(planned("e", occurred_at=longest))

        assert len(longest) == 64
        assert not isinstance(message, Rejected)
        assert message.occurred_at == "2026-04-27T10:39:03.111111Z"

    @pytest.mark.parametrize("sequence", [0, 2**63 - 1])
    def test_have_a_sequence_of_63_bits(self, sequence: int) -> None:
        """The bounds belong to the range."""
        message = decoded(planned("e", sequence=sequence))

        assert not isinstance(message, Rejected)
        assert message.sequence == sequence

    def test_have_sequence_0_without_one(self) -> None:
        """A publisher without a log of its own leaves it out."""
        built = planned("e")
        del built["sequence"]
        message = decoded(built)

        assert not isinstance(message, Rejected)
        assert message.sequence == 0

    async def test_keep_unknown_fields_in_the_log_and_ignore_them(self, tmp_path: Path) -> None:
        """The body is kept as published, and the row is as if the fields were missing."""
        extra: dict[str, Any] = {"payload": {"note": "kept"}, "trace": ["t-1"]}
        raw = body(planned("e-1", **extra, id="m")).replace(b", ", b" ,\n")

        await project(tmp_path / "p.db", [raw])

        assert rows(tmp_path / "p.db", "SELECT body FROM log") == [(raw.decode(),)]
        assert "kept" not in json.dumps(rows(tmp_path / "p.db"))
        assert (await audited(tmp_path / "p.db")).differing == 0

    @pytest.mark.parametrize(
        ("twice", "counted"),
        [
            ('"sequence": 1', '"sequence": 2'),
            ('"kind": "event_planned"', '"kind": "event_expired"'),
            ('"event_id": "e-1"', '"event_id": "e-2"'),
            ('"chat_id": "a"', '"chat_id": "b"'),
            ('"props": {"a": 1}', '"props": {"a": 2}'),
        ],
    )
    def test_may_have_equal_keys(self, twice: str, counted: str) -> None:
        """The last one counts, in the envelope, the payload and elsewhere, every time."""
        payload = '{"event_id": "e-1", "chat_id": "a", "kind": "k", "props": {"a": 1}}'
        once = (
            '{"id": "m", "kind": "event_planned", "occurred_at": "2026-04-27T10:39:03Z", '
            f'"sequence": 1, "payload": {payload}}}'
        )
        both = once.replace(twice, f"{twice}, {counted}").encode()

        assert is_message(both)
        assert decoded(both) == decoded(once.replace(twice, counted).encode())

    async def test_survive_what_json_can_say(self, tmp_path: Path) -> None:
        """Props come back as they were sent, and their stream can be folded again."""
        props = {
            "z": [1.5, -0.0, 2**63 - 1, 10**4_299, None, True],
            "\U0001f600": "a\x1f\u2028'\"\\u0000",
        }
        first, second = planned("e-1", payload={"props": props}), completed("e-1")

        outcomes = await project(tmp_path / "p.db", [second], [first])

        assert verdicts(outcomes) == ["orphan", "late"]
        ((kept,),) = rows(tmp_path / "p.db", "SELECT props_json FROM events")
        assert json.loads(kept) == props


class TestSize:
    def test_is_taken_at_the_cap(self) -> None:
        """A message of exactly the maximum size is accepted."""
        raw = body(planned("e"))

        assert is_message(raw + b" " * (CAP - len(raw)))

    def test_is_refused_above_it(self) -> None:
        """One byte more is too large, and nothing else is checked."""
        for raw in (body(planned("e")).ljust(CAP + 1), b"[" * (CAP + 1)):
            rejected = decoded(raw, "text/plain")

            assert rejected == Rejected(
                Reason.TOO_LARGE, "The body has 65,537 bytes; at most 65,536 are taken."
            )


class TestContentType:
    @pytest.mark.parametrize(
        "content_type",
        [None, "", "application/json", "application/json; charset=utf-8", "application/vnd.x+json",
         "APPLICATION/JSON", "text/json", "application/json;charset=UTF-8"],
    )  # fmt: skip
    def test_of_json_is_taken(self, content_type: str | None) -> None:
        """Any name for JSON is accepted, and so is a missing content type."""
        assert is_message(planned("e"), content_type)

    @pytest.mark.parametrize(
        "content_type",
        ["text/plain", "application/xml", "application/octet-stream", "json", "application/jsonx",
         "application/json, text/plain", "application/xml+json/x"],
    )  # fmt: skip
    def test_of_anything_else_is_refused(self, content_type: str) -> None:
        """A publisher that declares another type is believed."""
        rejected = decoded(planned("e"), content_type)

        assert rejected == Rejected(
            Reason.NOT_JSON,
            f"The content type is {content_type!r}; send application/json or none.",
        )
