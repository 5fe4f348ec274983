"""The bytes of difference streams: golden ones, cut ones, damaged ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.difference_stream import (
    DATA_BYTES_MAX,
    MAGIC,
    Event,
    StreamDecoder,
    StreamEncoder,
    StreamEnd,
    StreamHeader,
    StreamRange,
)
from metadata.errors import Corrupt

HEADER = StreamHeader(1 << 20, "tuesday", (("p1", 20, 3),), (("p1", 20, 7), ("p0", 16, 9)))
EVENTS: list[Event] = [
    HEADER,
    StreamRange(0, 5, b"hello"),
    StreamRange(8192, 4096, None),
    StreamRange(65536, 3, b"you"),
    StreamEnd(8, 4096, 4),
]


def a_stream() -> bytes:
    encoder = StreamEncoder()
    parts = [encoder.header(HEADER), encoder.data(0, b"hello"), encoder.hole(8192, 4096)]
    return b"".join([*parts, encoder.data(65536, b"you"), encoder.end()])


def decoded(stream: bytes, *, piece: int = 1 << 20) -> list[Event]:
    decoder = StreamDecoder()
    events = [e for at in range(0, len(stream), piece) for e in decoder.feed(stream[at : at + piece])]
    decoder.close()
    return events


def test_a_stream_s_bytes_never_change() -> None:
    encoder = StreamEncoder()
    header = encoder.header(StreamHeader(4096, "a", (), (("p", 1, 2),)))
    assert header == bytes.fromhex("564449534b44494601460000008964adae60274595") + bytes.fromhex(
        "88a6666f726d617401a4706f6f6ca170a5766469736b01a776657273696f6e02a46e616d65a161a473697a65cd1000"
        "a462617365 90aa6964656e746974696573 91 93a1700102"
    )
    data = encoder.data(0, b"x")
    assert data[:5] + data[13:] == bytes.fromhex("02 09000000 0000000000000000 78")
    hole = encoder.hole(1, 2)
    assert hole[:5] + hole[13:] == bytes.fromhex("03 10000000 0100000000000000 0200000000000000")


@given(st.integers(1, 500))
def test_a_stream_is_understood_however_it_is_cut_into_pieces(piece: int) -> None:
    assert decoded(a_stream(), piece=piece) == EVENTS


def test_a_stream_cut_anywhere_is_no_stream() -> None:
    stream = a_stream()
    for length in range(len(stream)):
        with pytest.raises(Corrupt, match="cut"):
            decoded(stream[:length])


@given(st.integers(0, 2000), st.integers(1, 255))
def test_a_byte_altered_anywhere_is_noticed(at: int, change: int) -> None:
    stream = bytearray(a_stream())
    stream[at % len(stream)] ^= change
    with pytest.raises(Corrupt):
        decoded(bytes(stream))


def test_what_a_damaged_frame_holds_is_never_said() -> None:
    encoder = StreamEncoder()
    before = encoder.header(HEADER) + encoder.data(0, b"good")
    damaged = bytearray(before + encoder.data(1 << 12, b"also good") + encoder.end())
    damaged[len(before) + 25] ^= 1
    events, decoder = list[Event](), StreamDecoder()

    def take() -> None:
        for event in decoder.feed(bytes(damaged)):
            events.append(event)  # one by one: what came before the error counts

    with pytest.raises(Corrupt, match="checksum"):
        take()
    assert [event.data for event in events if isinstance(event, StreamRange)] == [b"good"]


def test_frames_lost_repeated_or_exchanged_are_noticed() -> None:
    encoder = StreamEncoder()
    frames = [encoder.header(HEADER), *(encoder.data(at << 12, b"abcd") for at in range(4)), encoder.end()]
    assert len(decoded(b"".join(frames))) == 6
    for wrong in (
        frames[:2] + frames[3:],
        frames[:2] + frames[1:],
        [frames[0], frames[2], frames[1], *frames[3:]],
        frames + frames[1:2],
        [frames[0], frames[0][len(MAGIC) :], *frames[1:]],
        [MAGIC, *frames[1:]],
    ):
        with pytest.raises(Corrupt):
            decoded(b"".join(wrong))


def test_ranges_that_overlap_or_leave_the_vdisk_are_refused() -> None:
    for offset, length in ((4, 4), (1 << 20, 1), ((1 << 20) - 1, 2), (100, 0)):
        encoder = StreamEncoder()
        stream = encoder.header(HEADER) + encoder.data(0, b"hello") + encoder.hole(offset, length)
        with pytest.raises(Corrupt, match="holds what it cannot"):
            decoded(stream + encoder.end())


def test_other_files_are_refused_at_their_first_bytes() -> None:
    for other in (b"QFI\xfb", b"\0" * 100, b"VDISKDIG"):
        with pytest.raises(Corrupt, match="begin"):
            list(StreamDecoder().feed(other))


def test_what_claims_to_be_huge_is_refused_before_it_is_kept() -> None:
    frame = b"\x02" + (DATA_BYTES_MAX + 9).to_bytes(4, "little") + bytes(8)
    with pytest.raises(Corrupt, match="damaged"):
        list(StreamDecoder().feed(MAGIC + frame))


def test_a_cut_stream_is_gone_on_with_by_its_decoder_s_encoder() -> None:
    stream = a_stream()
    for cut in range(len(stream)):
        decoder = StreamDecoder()
        seen = list(decoder.feed(stream[:cut]))
        if decoder.header is None or decoder.is_complete:
            continue
        rest = b""
        for event in EVENTS[len(seen) : -1]:
            assert isinstance(event, StreamRange)
            rest += (
                decoder.encoder.hole(event.offset, event.length)
                if event.data is None
                else decoder.encoder.data(event.offset, event.data)
            )
        assert stream[: decoder.whole_bytes] + rest + decoder.encoder.end() == stream
