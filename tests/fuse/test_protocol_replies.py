"""Replies and notices, read back as the kernel reads them."""

import errno
import os
import stat
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvfs.errors import FormatError
from cvfs.fuse.protocol import codes, notices, replies
from tests.fuse import kernel_side as kernel

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
TIME_NS = st.integers(-(2**63), 2**63 - 1)
NAME = st.binary(min_size=1, max_size=255)
VALIDITY = replies.encode_validity(1.25, 31_536_000)
FILE: dict[str, int] = {
    "ino": 2**64 - 2,
    "mode": stat.S_IFREG | 0o644,
    "nlink": 3,
    "uid": 1000,
    "gid": 1001,
    "rdev": 0,
    "size": 5000,
    "blocks": 10,
    "block_size": 4096,
    "mtime_ns": -1,
}
ATTR = replies.encode_attr(**FILE)


def test_attr() -> None:
    expected = {"ino": 2**64 - 2, "size": 5000, "blocks": 10, "mode": FILE["mode"], "nlink": 3, "uid": 1000}
    expected |= {"gid": 1001, "rdev": 0, "blksize": 4096, "flags": 0, "atime": -1, "atimensec": 999_999_999}
    expected |= {"mtime": -1, "mtimensec": 999_999_999, "ctime": -1, "ctimensec": 999_999_999}
    assert kernel.attr(ATTR) == expected


def test_a_time_before_1970_is_an_unsigned_number_in_twos_complement() -> None:
    assert ATTR[32:40] == struct.pack("=Q", 2**64 - 1)


@given(TIME_NS)
def test_times_keep_every_nanosecond(time_ns: int) -> None:
    attr = kernel.attr(replies.encode_attr(**(FILE | {"mtime_ns": time_ns})))
    assert attr["mtime"] * 10**9 + attr["mtimensec"] == time_ns
    assert 0 <= attr["mtimensec"] < 10**9


@pytest.mark.parametrize(
    "field", [{"ino": 2**64}, {"mode": -1}, {"uid": 2**32}, {"rdev": 2**32}, {"size": -1}, {"mtime_ns": 10**30}]
)
def test_a_number_that_does_not_fit_is_a_format_error(field: dict[str, int]) -> None:
    with pytest.raises(FormatError, match="inode"):
        replies.encode_attr(**(FILE | field))


@given(st.fixed_dictionaries({name: st.integers() if name.endswith("_ns") else U64 for name in FILE}))
def test_only_format_errors_come_of_any_attributes(fields: dict[str, int]) -> None:
    try:
        assert len(replies.encode_attr(**fields)) == 88
    except FormatError:
        return


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, (0, 0)), (1.5, (1, 500_000_000)), (-1, (0, 0)), (1e300, (2**31 - 1, 0))]
)
def test_timeouts(seconds: float, expected: tuple[int, int]) -> None:
    entry_s, attr_s, entry_ns, attr_ns = struct.unpack("=QQII", replies.encode_validity(seconds, 7))
    assert ((entry_s, entry_ns), (attr_s, attr_ns)) == (expected, (7, 0))


@given(U64, U64)
def test_entry(unique: int, node: int) -> None:
    reply = kernel.reply(replies.encode_entry(unique, node, ATTR, VALIDITY))
    assert (reply.unique, reply.error) == (unique, 0)
    assert kernel.entry_out(reply.payload) == (node, 0, 1, 31_536_000, 250_000_000, 0, kernel.attr(ATTR))


def test_no_entry_is_an_entry_of_node_0_with_a_timeout() -> None:
    entry = kernel.entry_out(kernel.reply(replies.encode_no_entry(8, VALIDITY)).payload)
    assert (entry.node, entry.entry_valid, entry.entry_valid_nsec) == (0, 1, 250_000_000)
    assert set(entry.attr.values()) == {0}


def test_attributes() -> None:
    payload = kernel.reply(replies.encode_attributes(8, ATTR, 86400)).payload
    assert payload == struct.pack("=QII", 86400, 0, 0) + ATTR


def test_error() -> None:
    assert kernel.reply(replies.encode_error(codes.RESENT_BIT | 8, errno.ENOENT)) == (2**63 + 8, -errno.ENOENT, b"")


@pytest.mark.parametrize("number", [0, -2, 512, 100_000])
def test_an_error_that_the_kernel_would_refuse_is_eio(number: int) -> None:
    assert kernel.reply(replies.encode_error(8, number)).error == -errno.EIO


@pytest.mark.parametrize("data", [b"", b"x", bytes(1 << 20), memoryview(b"abcdef")[2:4]])
def test_read_does_not_copy(data: bytes | memoryview) -> None:
    header, payload = replies.encode_read(8, data)
    assert payload is data
    assert kernel.reply(header + bytes(payload)) == (8, 0, bytes(data))


@given(st.lists(st.tuples(NAME, U64, st.integers(0, 15), U64), max_size=20), st.integers(0, 3000), st.booleans())
def test_records_are_whole_and_in_order(listing: list[Any], room: int, plus: bool) -> None:
    if plus:
        records = [replies.encode_direntplus(n, node, k, after, ATTR, VALIDITY) for n, node, k, after in listing]
    else:
        records = [replies.encode_dirent(name, ino, kind, after) for name, ino, kind, after in listing]
    fitting = sum(sum(map(len, records[: count + 1])) <= room for count in range(len(records)))
    reply = kernel.reply(replies.encode_records(8, records, room))
    if listing and not fitting:
        assert reply.error == -errno.EINVAL
        return
    found = kernel.dirents(reply.payload, plus)
    assert len(reply.payload) <= room
    assert [(d.name, d.kind, d.offset) for d in found] == [(n, k, after) for n, _, k, after in listing[:fitting]]
    if plus:
        entry = (0, 1, 31_536_000, 250_000_000, 0, kernel.attr(ATTR))
        assert [(d.ino, d.entry) for d in found] == [(FILE["ino"], (one[1], *entry)) for one in listing[:fitting]]
    else:
        assert [d.ino for d in found] == [one[1] for one in listing[:fitting]]


def test_records_may_fill_the_room_to_the_last_byte() -> None:
    records = [replies.encode_dirent(b"name", 5, 8, 1)] * 3
    assert kernel.reply(replies.encode_records(8, records, 64)).payload == records[0] * 2


def test_records_take_only_what_fits_of_an_endless_directory() -> None:
    def endless() -> Any:
        while True:
            yield replies.encode_dirent(b"name", 5, 8, 1)

    assert len(kernel.dirents(kernel.reply(replies.encode_records(8, endless(), 100)).payload, plus=False)) == 3


@pytest.mark.parametrize("length", range(1, 17))
def test_a_record_is_a_multiple_of_8_bytes(length: int) -> None:
    assert len(replies.encode_dirent(b"n" * length, 1, 8, 1)) == replies.DIRENT_BYTES + -(-length // 8) * 8
    plus = replies.encode_direntplus(b"n" * length, 1, 8, 1, ATTR, VALIDITY)
    assert len(plus) == replies.DIRENTPLUS_BYTES + -(-length // 8) * 8


def test_open() -> None:
    reply = kernel.reply(replies.encode_open(8, 2**64 - 1, codes.OpenFlag.CACHE_DIR))
    assert struct.unpack("=QIi", reply.payload) == (2**64 - 1, 0x8, 0)


def test_statfs() -> None:
    payload = kernel.reply(replies.encode_statfs(8, replies.Statfs(1, 2, 3, 4, 5, 6, 7))).payload
    assert struct.unpack("=QQQQQIIII6I", payload) == (1, 2, 2, 3, 4, 5, 7, 6, 0, 0, 0, 0, 0, 0, 0)


def test_xattr_has_two_modes_and_a_room() -> None:
    assert kernel.reply(replies.encode_xattr(8, b"value", 0)).payload == struct.pack("=II", 5, 0)
    assert kernel.reply(replies.encode_xattr(8, b"value", 5)).payload == b"value"
    assert kernel.reply(replies.encode_xattr(8, b"value", 4)).error == -errno.ERANGE


def test_names() -> None:
    assert replies.join_names([b"user.a", b"user.b"]) == b"user.a\0user.b\0"
    assert replies.join_names([]) == b""


def test_lseek() -> None:
    assert kernel.reply(replies.encode_lseek(8, 2**63 - 1)).payload == struct.pack("=Q", 2**63 - 1)


def test_statx() -> None:
    device = replies.encode_attr(**(FILE | {"rdev": os.makedev(0x123, 0x45678)}))
    payload = kernel.reply(replies.encode_statx(8, device, 9)).payload
    assert len(payload) == 288
    assert struct.unpack("=QII16x", payload[:32]) == (9, 0, 0)
    fields = struct.unpack("=IIQIIIHHQQQQ", payload[32:96])
    assert fields == (0x7FF, 4096, 0, 3, 1000, 1001, FILE["mode"], 0, 2**64 - 2, 5000, 10, 0)
    times = struct.unpack("=qIiqIiqIiqIi", payload[96:160])
    assert times == (-1, 999_999_999, 0, 0, 0, 0, -1, 999_999_999, 0, -1, 999_999_999, 0)
    assert struct.unpack("=IIII", payload[160:176]) == (0x123, 0x45678, 0, 0)


def test_inval_inode() -> None:
    notice = notices.encode_inval_inode(2**64 - 1, -1, 4096)
    assert struct.unpack("=IiQQqq", notice) == (40, 2, 0, 2**64 - 1, -1, 4096)


@given(NAME, U64, U32)
def test_inval_entry(name: bytes, parent: int, flags: int) -> None:
    notice = notices.encode_inval_entry(parent, name, flags)
    assert struct.unpack("=IiQQII", notice[:32]) == (33 + len(name), 3, 0, parent, len(name), flags)
    assert notice[32:] == name + b"\0"


@pytest.mark.parametrize("name", [b"", b"n" * 4096])
def test_inval_entry_of_no_name_is_refused(name: bytes) -> None:
    with pytest.raises(FormatError):
        notices.encode_inval_entry(1, name)


def test_resend_and_inc_epoch_are_bare_headers() -> None:
    assert struct.unpack("=IiQ", notices.encode_resend()) == (16, 7, 0)
    assert struct.unpack("=IiQ", notices.encode_inc_epoch()) == (16, 8, 0)


def test_data_in_parts_is_one_reply_and_never_more_than_a_writev_takes() -> None:
    reply = replies.encode_read(9, b"ab", memoryview(b"xcdx")[1:3], b"")
    assert kernel.reply(b"".join(reply)).payload == b"abcd"
    many = replies.encode_read(9, *[b"%d" % (number % 10) for number in range(5000)])
    assert len(many) <= 1024
    assert kernel.reply(b"".join(many)).payload == b"0123456789" * 500
