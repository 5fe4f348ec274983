"""The kernel's structures to the byte, and what the channel makes of INIT, SETATTR and request numbers."""

import struct

from fusefs import fuse_abi as abi
from metadata.units import VDISK_BYTES_MAX


def request(opcode: int, body: bytes, *, unique: int = 6, inode: int = 77) -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, inode, 0, 0, 4242, 0, 0) + body


def init_reply(flags: int, flags2: int) -> bytes:
    fields = (7, 36, 131072, flags, 12, 9, 131072, 1, 32, 0, flags2, 0, 0)
    return abi.OUT_HEADER.pack(80, 0, 2) + abi.INIT_OUT.pack(*fields) + bytes(64 - abi.INIT_OUT.size)


def test_the_structures_have_the_sizes_of_the_kernels_header() -> None:
    assert abi.IN_HEADER.size == abi.IN_HEADER_BYTES == 40
    assert abi.OUT_HEADER.size == 16
    assert abi.REQUEST_HEAD.size == 40 + 36  # as far as the open flags of fuse_read_in
    assert abi.SETATTR_IN.size == 88
    assert abi.ATTR_REPLY.size == 16 + 104
    assert abi.COPY_IN.size == 56
    assert abi.WRITE_REPLY.size == abi.U64_REPLY.size == 24


def test_a_read_requests_fields_are_where_the_kernel_puts_them() -> None:
    body = struct.pack("<QQIIQII", 11, 4096, 512, 3, 99, 0o40002, 0)
    fields = abi.REQUEST_HEAD.unpack_from(request(abi.READ, body))
    assert fields == (abi.READ, 6, 11, 4096, 512, 3, 0o40002)


def test_an_init_reply_asks_for_what_the_kernel_offers_and_nothing_else() -> None:
    offered = abi.WRITEBACK_CACHE | abi.ASYNC_DIO | abi.MAX_PAGES | abi.HANDLE_KILLPRIV_V2 | abi.INIT_EXT
    amended = abi.amend_init_reply(init_reply(abi.POSIX_LOCKS | abi.HANDLE_KILLPRIV, 0), offered)
    fields = abi.INIT_OUT.unpack_from(amended, 16)
    assert fields[3] | fields[10] << 32 == offered
    assert fields[4] == abi.MAX_BACKGROUND
    assert fields[6] == 1 << 20
    assert fields[8] == 256
    assert len(amended) == len(init_reply(0, 0))
    with_resend = abi.amend_init_reply(init_reply(0, 0), offered | abi.HAS_RESEND)
    assert abi.INIT_OUT.unpack_from(with_resend, 16)[10] == abi.HAS_RESEND >> 32


def test_a_failed_init_reply_stays_as_it_is() -> None:
    failed = abi.OUT_HEADER.pack(16, -71, 2)
    assert abi.amend_init_reply(failed, abi.WRITEBACK_CACHE) == failed


def test_offered_flags_take_the_second_word_only_where_the_first_announces_it() -> None:
    old = request(abi.INIT, struct.pack("<IIIII", 7, 31, 65536, abi.WRITEBACK_CACHE, 0xFFFF))
    assert abi.offered_flags(old) == abi.WRITEBACK_CACHE
    new = request(abi.INIT, struct.pack("<IIIII", 7, 41, 65536, abi.INIT_EXT, 1 << 7))
    assert abi.offered_flags(new) == abi.INIT_EXT | abi.HAS_RESEND


def test_a_forwarded_request_carries_its_number_and_whether_it_comes_again() -> None:
    first = abi.number_request(request(1, b"name\0", unique=2 * 1234))
    again = abi.number_request(request(1, b"name\0", unique=2 * 1234 | 1 << 63))
    assert struct.unpack_from("<I", first, 32)[0] == 1234
    assert struct.unpack_from("<I", again, 32)[0] == 1234 | abi.RESENT
    assert first[36:] == again[36:] == request(1, b"name\0")[36:]


def set_attributes(valid: int) -> memoryview:
    body = abi.SETATTR_IN.pack(valid, 0, 5, 1 << 40, 0, 1, 20, 300, 7, 8, 9, 0o777, 0, 1, 1, 0)
    return memoryview(request(abi.SETATTR, body))


def test_only_a_setattr_of_times_alone_is_one_for_the_channel() -> None:
    fh, mtime, ctime, size, mode, atime = 1 << 6, 1 << 5, 1 << 10, 1 << 3, 1, 1 << 4
    assert abi.parse_times(set_attributes(fh | mtime | ctime)) == (77, 20 * 10**9 + 8, 300 * 10**9 + 9)
    assert abi.parse_times(set_attributes(mtime)) == (77, 20 * 10**9 + 8, None)
    for other in (size, mode, atime, 1 << 8, 1 << 11):
        assert abi.parse_times(set_attributes(mtime | other)) is None


def test_a_question_for_the_size_sets_nothing() -> None:
    fh, mtime, size, kill = 1 << 6, 1 << 5, 1 << 3, 1 << 11
    assert VDISK_BYTES_MAX < abi.ASKED_SIZE < 1 << 63
    asked = bytearray(set_attributes(size | mtime | kill))
    struct.pack_into("<Q", asked, 40 + 16, abi.ASKED_SIZE)
    assert abi.asks_size(memoryview(asked))
    assert abi.parse_times(memoryview(asked)) == (77, None, None)
    struct.pack_into("<Q", asked, 40 + 16, 4096)
    assert not abi.asks_size(memoryview(asked))
    assert abi.parse_times(memoryview(asked)) is None
    assert not abi.asks_size(set_attributes(fh | mtime))


def test_an_attribute_reply_says_what_it_was_given() -> None:
    shown = abi.Attributes(
        valid_s=1, inode=77, size=5000, blocks=16, atime_ns=10**9 + 1, mtime_ns=2 * 10**9 + 2,
        ctime_ns=3 * 10**9 + 3, mode=0o100644, links=1, uid=10, gid=20, block_bytes=4096,
    )  # fmt: skip
    reply = abi.attributes_reply(8, shown)
    assert len(reply) == 120
    assert struct.unpack_from("<IiQQI", reply) == (120, 0, 8, 1, 0)
    assert struct.unpack_from("<6Q", reply, 32) == (77, 5000, 16, 1, 2, 3)
    assert struct.unpack_from("<10I", reply, 80) == (1, 2, 3, 0o100644, 1, 10, 20, 0, 4096, 0)
