"""The wire protocol: what is written is read, golden bytes of each message, and anything else is refused."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.errors import Busy, Corrupt, InvalidRequest, NotFound, NotOwner, Unavailable, VdiskfsError
from replication.cluster import CALL_DATA_BYTES_MAX
from replication.wire import (
    FRAME_BYTES_MAX,
    HELLO_BYTES_MAX,
    Answered,
    Call,
    Failed,
    FrameReader,
    Hello,
    Refused,
    decode,
    encode_answer,
    encode_call,
    encode_error,
    encode_hello,
    encode_refused,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
named = st.dictionaries(st.text(max_size=8), values, max_size=4)
numbers = st.integers(1, 2**63)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data cut up, by sizes that are used again and again."""
    cut, at, number = list[bytes](), 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        cut.append(data[at : at + size])
        at, number = at + size, number + 1
    return cut


class TestMessages:
    @given(numbers, st.text(max_size=20), named, st.binary(max_size=5000))
    def test_a_call_and_its_answer_are_read_as_written(
        self, number: int, verb: str, arguments: dict[str, object], data: bytes
    ) -> None:
        (call,) = FrameReader(bytes_max=FRAME_BYTES_MAX).feed(encode_call(number, verb, arguments, data))
        assert decode(call) == Call(number, verb, arguments, data)
        (answer,) = FrameReader(bytes_max=FRAME_BYTES_MAX).feed(encode_answer(number, arguments, data))
        assert decode(answer) == Answered(number, arguments, data)

    def test_messages_have_these_bytes(self) -> None:
        assert encode_hello(Hello("c", "n", "i")).hex() == "00000009" + "950001" + "a163" + "a16e" + "a169"
        assert encode_refused("no").hex() == "00000005" + "9201" + "a26e6f"
        assert encode_call(7, "v", {"a": 1}, b"\0").hex() == (
            "0000000c" + "950207" + "a176" + "81a16101" + "c40100"
        )
        assert encode_answer(7, {}, b"").hex() == "00000006" + "94030780" + "c400"
        assert encode_error(7, Busy("x")).hex() == "0000000b" + "950407" + "a442757379" + "a178" + "10"

    def test_a_hello_of_another_protocol_is_read_so_far_as_to_say_so(self) -> None:
        assert decode(msgpack.packb([0, 9, {"whatever": 1}])) == Hello("", "", "", 9)
        assert decode(encode_hello(Hello("c", "n", "i"))[4:]) == Hello("c", "n", "i", 1)
        assert decode(encode_refused("no")[4:]) == Refused("no")

    def test_a_call_with_all_the_bytes_that_are_allowed_fits_a_frame(self) -> None:
        frame = encode_call(2**63, "verb", {"vdisk": 2**63, "version": 2**63}, bytes(CALL_DATA_BYTES_MAX))
        assert len(FrameReader(bytes_max=FRAME_BYTES_MAX).feed(frame)) == 1
        with pytest.raises(InvalidRequest, match="too much for one message"):
            encode_call(1, "verb", {"text": "x" * FRAME_BYTES_MAX}, b"")


class TestErrors:
    @pytest.mark.parametrize(
        "error", [NotOwner("not here"), NotFound("gone", number=116), Unavailable("x"), VdiskfsError("y")]
    )
    def test_an_error_crosses_with_its_class_its_message_and_its_number(self, error: VdiskfsError) -> None:
        found = decode(encode_error(3, error)[4:])
        assert isinstance(found, Failed)
        assert type(found.error) is type(error)
        assert (str(found.error), found.error.number) == (str(error), error.number)

    @pytest.mark.parametrize("name", ["Unheard", "errno", "__name__", "Exception", ""])
    def test_an_error_of_a_class_that_nobody_knows_is_unavailable(self, name: str) -> None:
        found = decode(msgpack.packb([4, 1, name, "text", 5]))
        assert isinstance(found, Failed)
        assert type(found.error) is Unavailable


class TestFrames:
    @given(
        st.lists(st.binary(max_size=300), max_size=6),
        st.lists(st.integers(1, 400), min_size=1, max_size=5),
    )
    def test_bodies_are_whole_however_they_arrive(self, bodies: list[bytes], sizes: list[int]) -> None:
        data = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
        reader = FrameReader()
        assert [body for piece in pieces(data, sizes) for body in reader.feed(piece)] == bodies

    @pytest.mark.parametrize("length", [HELLO_BYTES_MAX + 1, 2**32 - 1])
    def test_a_frame_that_is_too_long_is_refused_when_it_is_announced(self, length: int) -> None:
        with pytest.raises(Corrupt, match=f"{length} bytes is announced"):
            FrameReader().feed(length.to_bytes(4, "big"))

    @given(st.binary(max_size=200))
    def test_no_bytes_do_anything_but_be_read_or_refused(self, garbage: bytes) -> None:
        try:
            for body in FrameReader().feed(garbage):
                decode(body)
        except Corrupt:
            pass

    @given(values)
    def test_no_message_does_anything_but_be_read_or_refused(self, value: object) -> None:
        for message in (value, [value], [2, value, value, value, value], [4, value, value, value, value]):
            try:
                decode(msgpack.packb(message))
            except Corrupt:
                pass

    @given(st.integers(0, 60), st.integers(0, 255))
    def test_a_changed_byte_is_another_message_or_none(self, position: int, value: int) -> None:
        data = bytearray(encode_call(1, "verb", {"vdisk": 17, "text": "word"}, b"data" * 8))
        data[position % len(data)] = value
        reader = FrameReader(bytes_max=FRAME_BYTES_MAX)
        try:
            for body in reader.feed(bytes(data)):
                decode(body)
        except Corrupt:
            pass
