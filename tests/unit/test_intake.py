"""pamqp encodes the bytes, and the worker's reader does not use pamqp."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel
from pamqp.frame import FrameTypes
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from tests.waiting import eventually, turns
from worker.broker import intake
from worker.broker.intake import BATCH_BYTES, BEAT, BEAT_SECONDS, Intake, IntakeReader
from worker.deliveries import Delivery, Outcome, Reason, Rejected, Verdict
from worker.messages import Arrival

CONSUMING, OTHER = 1, 2
METHOD_OF_FOUR_BYTES = b"\x01\x00\x01\x00\x00\x00\x04"
NOTHING = Rejected(Reason.NOT_JSON, "")


def delivered(delivery: Delivery) -> Arrival:
    return Arrival(delivery, NOTHING)


def frames(tag: int, body: bytes = b"", channel: int = CONSUMING, size: int = 50) -> bytes:
    """Return the frames of one delivery, with its body split into pieces of a given size."""
    method = Basic.Deliver("consumer", tag, False, "exchange", f"key {tag}")  # noqa: FBT003
    header = ContentHeader(0, len(body), Basic.Properties("application/json", message_id=str(tag)))
    pieces = [ContentBody(body[at : at + size]) for at in range(0, len(body), size)]
    parts: list[FrameTypes] = [method, header, *pieces]
    return b"".join(frame.marshal(each, channel) for each in parts)


def cut(data: bytes, places: Sequence[int]) -> Iterator[bytes]:
    """Return the bytes in chunks, as a connection may deliver them."""
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    for start, end in pairwise(edges):
        yield data[start:end]


async def fed(chunks: Iterator[bytes] | Sequence[bytes]) -> tuple[list[Arrival], bytes]:
    """Return what arrived, and what was left for the library."""
    intake = Intake(delivered)
    reader = IntakeReader(intake)
    for chunk in chunks:
        reader.feed_data(chunk)
    reader.feed_eof()
    return intake.take(1_000), await reader.read()


parts = st.lists(
    st.one_of(
        st.binary(max_size=120).map(lambda body: ("delivery", body)),
        st.sampled_from(
            [
                ("other", frame.marshal(Channel.OpenOk(), OTHER)),
                ("other", frame.marshal(Basic.CancelOk("consumer"), CONSUMING)),
                ("other", frame.marshal(Heartbeat(), 0)),
            ]
        ),
    ),
    max_size=12,
)


class TestDeliveries:
    @given(parts, st.lists(st.integers(min_value=0), max_size=20))
    def test_are_taken_however_the_bytes_are_cut(
        self, sent: list[tuple[str, bytes]], places: list[int]
    ) -> None:
        """Each arrives whole, once and in order; the library gets exactly the other frames."""
        bodies = [content for kind, content in sent if kind == "delivery"]
        tags = iter(range(1, len(bodies) + 1))
        data = b"".join(
            frames(next(tags), content) if kind == "delivery" else content for kind, content in sent
        )

        arrived, others = asyncio.run(fed(cut(data, places)))

        assert [(a.delivery.tag, a.delivery.body) for a in arrived] == list(enumerate(bodies, 1))
        beat = frame.marshal(Heartbeat(), 0)
        given = b"".join(content for kind, content in sent if kind == "other")
        assert others.replace(beat, b"") == given.replace(beat, b"")
        assert others.count(beat) >= given.count(beat)

    async def test_carry_what_the_broker_said(self) -> None:
        """The other properties are decoded on demand."""
        (arrival,), _ = await fed([frames(1, b"{}")])

        delivery = arrival.delivery
        assert (delivery.tag, delivery.body, delivery.routing_key) == (1, b"{}", "key 1")
        assert delivery.content_type == "application/json"
        assert not delivery.redelivered
        assert delivery.read_properties().kept == {"message_id": "1"}

    async def test_may_be_interleaved_with_another_channel(self) -> None:
        """Frames of a delivery belong to its channel."""
        whole = frames(1, b"x" * 200)
        other = b"".join(
            frame.marshal(each, OTHER) for each in (ContentHeader(0, 5), ContentBody(b"other"))
        )
        middle = len(frames(1)) + 58

        (arrival,), others = await fed([whole[:middle], other, whole[middle:]])

        assert arrival.delivery.body == b"x" * 200
        assert others.replace(BEAT, b"") == other

    async def test_keep_the_connection_alive(self) -> None:
        """The library notices a peer that sends only deliveries."""
        moments = iter([0.0, BEAT_SECONDS / 2, BEAT_SECONDS, BEAT_SECONDS * 2])
        reader = IntakeReader(Intake(delivered), clock=lambda: next(moments))
        for tag in range(1, 5):
            reader.feed_data(frames(tag, b"{}"))
        reader.feed_eof()

        assert await reader.read() == BEAT * 3


class TestTaking:
    def test_decodes_in_order_and_each_once(self) -> None:
        """Some are decoded ahead, the others when they are taken."""
        decoded: list[int] = []

        def decode(delivery: Delivery) -> Arrival:
            decoded.append(delivery.tag)
            return delivered(delivery)

        intake = Intake(decode)
        for tag in range(1, 6):
            intake.add(Delivery(b"{}", tag))
        intake.look_ahead(2)
        ahead = list(decoded)
        taken = [[arrival.delivery.tag for arrival in intake.take(3)] for _ in range(3)]

        assert ahead == [1, 2]
        assert taken == [[1, 2, 3], [4, 5], []]
        assert decoded == [1, 2, 3, 4, 5]

    def test_gives_only_a_few_large_ones_at_once(self) -> None:
        """A batch of the largest bodies must not delay the loop's heartbeats."""
        intake = Intake(delivered)
        for tag in range(1, 7):
            intake.add(Delivery(bytes(BATCH_BYTES // 2), tag))

        for _ in range(3):
            intake.look_ahead(1_000)
        taken = [len(intake.take(1_000)) for _ in range(4)]

        assert taken == [2, 2, 2, 0]

    def test_leaves_one_that_cannot_be_decoded_where_it_is(self) -> None:
        """Acking those behind it would ack it, too."""

        def decode(delivery: Delivery) -> Arrival:
            if delivery.tag == 2:
                raise KeyError(delivery.tag)
            return delivered(delivery)

        intake = Intake(decode)
        for tag in range(1, 4):
            intake.add(Delivery(b"{}", tag))
        for _ in range(2):
            with pytest.raises(KeyError):
                intake.look_ahead(1_000)

        with pytest.raises(KeyError):
            intake.take(1_000)


class Socket(asyncio.Transport):
    """A connection that records whether it is being read."""

    def __init__(self) -> None:
        """Start as open and being read."""
        super().__init__()
        self.reads = True
        self.is_open = True

    def pause_reading(self) -> None:
        """Record the call."""
        self.reads = False

    def resume_reading(self) -> None:
        """Record the call."""
        self.reads = True

    def is_closing(self) -> bool:
        """Return whether the connection has ended."""
        return not self.is_open


def applied(taken: list[Arrival]) -> list[Outcome]:
    return [Outcome(each.delivery, Verdict.APPLIED) for each in taken]


class TestAFullIntake:
    """It is full at 1,000 bytes; a connection may read 100 bytes per short interval."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(intake, "MOST_HELD_BYTES", 1_000)
        monkeypatch.setattr(intake, "SLOW_BYTES", 100)
        monkeypatch.setattr(intake, "BEAT_SECONDS", 0.001)

    @pytest.fixture
    async def full(self) -> tuple[Intake, IntakeReader, Socket]:
        """Return a full intake, its reader and its connection."""
        filled, socket = Intake(delivered), Socket()
        reader = IntakeReader(filled)
        reader.set_transport(socket)
        reader.feed_data(frames(1, b"x" * 1_000))
        return filled, reader, socket

    async def test_reads_no_further_delivery_until_some_are_settled(
        self, full: tuple[Intake, IntakeReader, Socket]
    ) -> None:
        """Deliveries that have been taken still count."""
        filled, reader, socket = full
        before = socket.reads
        reader.feed_data(frames(2, b"x"))
        taken = filled.take(1)
        meanwhile = socket.reads
        filled.settled(applied(taken))

        assert (before, meanwhile, socket.reads) == (True, False, True)

    async def test_counts_headers_like_bodies(self) -> None:
        """The headers of a message without a body may be as large as a frame."""
        (arrival,), _ = await fed([frames(1, b"x" * 1_000)])

        assert 1_000 < arrival.delivery.size < len(frames(1, b"x" * 1_000))

    async def test_reads_the_answers_of_the_broker_while_nothing_is_delivered(
        self, full: tuple[Intake, IntakeReader, Socket]
    ) -> None:
        """A suspect that fills the intake by itself is settled only after such an answer."""
        _, reader, socket = full
        reader.feed_data(frame.marshal(Basic.CancelOk("consumer"), CONSUMING))

        assert socket.reads

    async def test_reads_slowly_and_hears_heartbeats(
        self, full: tuple[Intake, IntakeReader, Socket]
    ) -> None:
        """Neither the broker nor the library takes the other side for dead."""
        _, reader, socket = full
        reader.feed_data(frames(2, b"x"))
        for _ in range(3):
            await eventually(lambda: socket.reads)
            reader.feed_data(frame.marshal(ContentBody(b"x" * 400), OTHER))
            assert not socket.reads
        heard = frame.marshal(ContentBody(b"x" * 400), OTHER)

        assert (await reader.readexactly(3 * len(heard))).count(BEAT) >= 3

    async def test_goes_on_reading_as_ever(self, full: tuple[Intake, IntakeReader, Socket]) -> None:
        """The slow reading ends once there is room, and when the connection ends."""
        filled, reader, socket = full
        reader.feed_data(frames(2, b"x"))
        filled.settled(applied(filled.take(2)))
        reader.feed_data(frames(3, b"x" * 500))
        reader.feed_eof()

        assert socket.reads
        assert [each.delivery.tag for each in filled.take(2)] == [3]

    @pytest.mark.parametrize("is_read", [True, False])
    async def test_ends_with_its_connection(
        self, full: tuple[Intake, IntakeReader, Socket], *, is_read: bool
    ) -> None:
        """This holds whether or not the end of the connection is read."""
        _, reader, socket = full
        reader.feed_data(frames(2, b"x"))
        if is_read:
            reader.feed_eof()
        else:
            socket.is_open = False
        await turns(100)

        assert not socket.reads

    async def test_does_not_keep_what_is_beyond_twice_its_size(
        self, full: tuple[Intake, IntakeReader, Socket]
    ) -> None:
        """Excess deliveries are returned once there is room, and none behind them is kept first."""
        filled, reader, _ = full
        for tag in range(2, 6):
            reader.feed_data(frames(tag, b"x" * 500))
        filled.settled(applied(filled.take(1)))
        reader.feed_data(frames(6, b"x"))
        while_full = filled.room_for_returns()
        taken = filled.take(10)
        filled.arrived.clear()
        filled.settled(applied(taken))

        assert while_full is None
        assert filled.room_for_returns() == 1  # of 1,000 bytes, beside 500 and their headers
        assert (filled.take_returns(), filled.take_returns()) == ([4, 5, 6], [])
        assert filled.room_for_returns() is None
        assert [each.delivery.tag for each in taken] == [2, 3]
        assert filled.arrived.is_set()


class TestWhatIsNotUnderstood:
    @pytest.mark.parametrize("spoiled", [b"AMQP\x00\x00\x09\x01", b"\x00" * 9, b"\x09" + b"x" * 20])
    async def test_is_left_to_the_library_with_all_that_follows(self, spoiled: bytes) -> None:
        """The library reports the error and ends the connection."""
        arrived, others = await fed([frames(1, b"{}"), spoiled + frames(2, b"{}"), b"more"])

        assert [arrival.delivery.tag for arrival in arrived] == [1]
        assert others == BEAT + spoiled + frames(2, b"{}") + b"more"

    async def test_is_a_frame_with_another_end(self) -> None:
        """A wrong length is not trusted."""
        spoiled = frames(1, b"{}")[:-1] + b"\x00"

        arrived, others = await fed([spoiled])

        assert arrived == []
        assert others == frame.marshal(ContentBody(b"{}"), CONSUMING)[:-1] + b"\x00"

    @pytest.mark.parametrize("second", ["mb", "mhhb", "mh", "mbh", "mhB", "hb", "m", ""])
    async def test_is_a_delivery_whose_frames_are_not_in_order(self, second: str) -> None:
        """Nothing behind it is taken, because an ack would cover the missing delivery, too."""
        parts: dict[str, FrameTypes] = {
            "m": Basic.Deliver("consumer", 2, False, "exchange", "key"),  # noqa: FBT003
            "h": ContentHeader(0, 2),
            "b": ContentBody(b"{}"),
            "B": ContentBody(b"{}}"),
        }
        intake = Intake(delivered)
        reader = IntakeReader(intake)
        reader.feed_data(frames(1, b"{}"))
        reader.feed_data(b"".join(frame.marshal(parts[each], CONSUMING) for each in second))
        reader.feed_data(frames(3, b"{}"))

        assert [arrival.delivery.tag for arrival in intake.take(10)] == [1]
        assert isinstance(reader.exception(), ConnectionError)

    async def test_is_a_frame_of_gigabytes(self) -> None:
        """The worker does not wait for the rest of it."""
        spoiled = b"\x03\x00\x01\xff\xff\xff\xff" + b"x" * 20

        arrived, others = await fed([frames(1, b"{}") + spoiled])

        assert [arrival.delivery.tag for arrival in arrived] == [1]
        assert others.replace(BEAT, b"") == spoiled

    async def test_is_a_delivery_that_is_too_short(self) -> None:
        """It ends the connection and nothing else."""
        short = METHOD_OF_FOUR_BYTES + bytes((0, 60, 0, 60)) + b"\xce"
        intake = Intake(delivered)
        reader = IntakeReader(intake)
        reader.feed_data(short + frame.marshal(ContentHeader(0, 0), CONSUMING))

        with pytest.raises(ConnectionError, match="cannot be read"):
            await reader.readexactly(1)


class TestSuspects:
    async def test_are_taken_alone_in_turns_with_the_others(self) -> None:
        """Neither waits for long, and an ack of many never includes a suspect that waits."""
        intake = Intake(delivered)
        for tag, losses in enumerate([2, 0, 3, 1, 0], 1):
            intake.add(Delivery(b"", tag, losses=losses))

        batches = []
        while batch := intake.take(2):
            batches.append([arrival.delivery.tag for arrival in batch])

        assert batches == [[2, 4], [1], [5], [3]]
        assert intake.oldest_tag is None

    async def test_stand_before_the_culprit_the_next_time(self) -> None:
        """Equals are decided in an order that turns with each loss; fewer losses come first."""
        orders = []
        for losses in (2, 3):
            intake = Intake(delivered)
            for tag, partition in enumerate([4, 1, 7], 1):
                intake.add(Delivery(b"", tag, losses=losses, partition=partition))
            intake.add(Delivery(b"", 4, losses=losses + 1, partition=5))
            orders.append([intake.take(9)[0].delivery.partition for _ in range(4)])

        assert orders == [[7, 4, 1, 5], [1, 4, 7, 5]]
