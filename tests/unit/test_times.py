import pytest

from tests.builders import planned, started
from tests.unit.projecting import arrivals
from worker.deliveries import Reason, Rejected
from worker.messages import AnyMessage, now

ACCEPTED = {
    "2026-04-27T10:39:03Z": "2026-04-27T10:39:03.000000Z",
    "2026-04-27 10:39:03Z": "2026-04-27T10:39:03.000000Z",
    "2026-04-27T10:39:03": "2026-04-27T10:39:03.000000Z",
    "2026-04-27T10:39": "2026-04-27T10:39:00.000000Z",
    "2026-04-27T10:39Z": "2026-04-27T10:39:00.000000Z",
    "2026-04-27T10:39+02:00": "2026-04-27T08:39:00.000000Z",
    "2026-04-27T10:39:03+02:00": "2026-04-27T08:39:03.000000Z",
    "2026-04-27T10:39:03-0530": "2026-04-27T16:09:03.000000Z",
    "2026-04-27T10:39:03+05": "2026-04-27T05:39:03.000000Z",
    "2026-04-27T10:39:03-00:00": "2026-04-27T10:39:03.000000Z",
    "2026-01-01T00:30:00+01:00": "2025-12-31T23:30:00.000000Z",
    "2028-02-29T23:59:59.999999Z": "2028-02-29T23:59:59.999999Z",
    "0001-01-01T00:00:00Z": "0001-01-01T00:00:00.000000Z",
    "9999-12-31T23:59:59.9999999Z": "9999-12-31T23:59:59.999999Z",
}
FRACTIONS = {
    "1": "100000",
    "12": "120000",
    "123": "123000",
    "1234": "123400",
    "12345": "123450",
    "123456": "123456",
    "1234567": "123456",
    "12345678": "123456",
    "123456789": "123456",
    "999999999": "999999",
    "000000001": "000000",
}
REFUSED: tuple[object, ...] = (
    1777286343,
    1777286343.5,
    True,
    None,
    [],
    "",
    "1777286343",
    "1777286343.5",
    "2026-04-27",
    "20260427",
    "2026-W18-1",
    "2026-W18-1T10:39:03Z",
    "2026-117T10:39:03Z",
    "20260427T103903Z",
    "2026-04-27T24:00:00Z",
    "2026-04-27T25:00:00Z",
    "2026-04-27T10:60:00Z",
    "2026-04-27T10:39:60Z",
    "2026-04-27T10Z",
    "2026-04-27T10:39:03.Z",
    "2026-04-27T10:39:03,5Z",
    "2026-04-27T10:39:03+24:00",
    "2026-04-27T10:39:03 Z",
    " 2026-04-27T10:39:03Z",
    "2026-04-27T10:39:03Z\n",
    "2026-04-31T10:39:03Z",
    "2026-13-01T10:39:03Z",
    "2026-02-29T10:39:03Z",
    "0000-01-01T00:00:00Z",
    "10000-01-01T00:00:00Z",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-00:01",
    "２０２６-04-27T10:39:03Z",
    "2026-04-27T10:39:0x.120Z",
    "2026-04-27T10:39:03.1２0Z",
    "2026-04-27T24:00:00.000Z",
    "2026-13-27T10:39:03.120Z",
    "2026-04-27T10:39:Z\x00.120Z",
    "now",
)


def at(occurred_at: object) -> AnyMessage | Rejected:
    (arrival,) = arrivals([planned("e-1", occurred_at=occurred_at)])
    return arrival.content


class TestTimes:
    @pytest.mark.parametrize(("text", "utc"), ACCEPTED.items())
    def test_become_utc_text_of_fixed_width(self, text: str, utc: str) -> None:
        """Whatever the offset and the precision, text order is time order."""
        message = at(text)

        assert not isinstance(message, Rejected)
        assert message.occurred_at == utc

    @pytest.mark.parametrize(("digits", "micros"), FRACTIONS.items())
    def test_are_cut_to_microseconds(self, digits: str, micros: str) -> None:
        """They may have one to nine digits; digits beyond microseconds are cut, never rounded."""
        message = at(f"2026-04-27T10:39:03.{digits}Z")

        assert not isinstance(message, Rejected)
        assert message.occurred_at == f"2026-04-27T10:39:03.{micros}Z"

    @pytest.mark.parametrize("value", REFUSED)
    def test_of_other_forms_are_refused(self, value: object) -> None:
        """A number, a date without a time or a second that does not exist is not accepted."""
        rejected = at(value)

        assert isinstance(rejected, Rejected)
        assert rejected.reason is Reason.BAD_ENVELOPE
        assert rejected.detail.startswith("occurred_at: ")

    def test_in_a_payload_follow_the_same_rules(self) -> None:
        """An event's times can be compared like those of messages."""
        good = started("e-1")
        good["payload"]["started_at"] = "2026-04-27T13:00:00.5+02:00"
        bad = started("e-1")
        bad["payload"]["started_at"] = "13:00"

        outcome, rejected = (arrival.content for arrival in arrivals([good, bad]))

        assert not isinstance(outcome, Rejected)
        assert outcome.payload.model_dump()["started_at"] == "2026-04-27T11:00:00.500000Z"
        assert isinstance(rejected, Rejected)
        assert rejected.reason is Reason.BAD_PAYLOAD

    def test_of_the_worker_have_the_same_form(self) -> None:
        """The log's own times sort with those of messages."""
        assert len(now()) == len("2026-04-27T10:39:03.120000Z")
        assert now() <= now()
