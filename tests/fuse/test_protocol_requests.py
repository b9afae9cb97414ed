"""Requests: each whole, cut at every byte, with bytes after it, and fuzzed."""

import contextlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvfs.errors import FormatError
from cvfs.fuse.protocol import bodies, codes, requests
from cvfs.fuse.protocol.codes import Opcode
from tests.fuse import kernel_side as kernel

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
TOP32, TOP64 = 2**32 - 1, 2**64 - 1

WHOLE = {
    "lookup": (kernel.lookup(b"\xff name"), b"\xff name"),
    "lookup, as long as can be": (kernel.lookup(b"n" * 4095), b"n" * 4095),
    "getattr": (kernel.getattr_(1, TOP64), bodies.Getattr(1, TOP64)),
    "readlink": (kernel.request(Opcode.READLINK), None),
    "open": (kernel.open_(0o100000, 1), bodies.Open(0o100000, 1)),
    "opendir": (kernel.open_(0o200000, 0, Opcode.OPENDIR), bodies.Open(0o200000, 0)),
    "read": (kernel.read(TOP64, 2**63 - 1, TOP32, 7), bodies.Read(TOP64, 2**63 - 1, TOP32, 7)),
    "readdir": (kernel.read(1, 2, 3, 4, Opcode.READDIR), bodies.Read(1, 2, 3, 4)),
    "readdirplus": (kernel.read(1, 2, 3, 4, Opcode.READDIRPLUS), bodies.Read(1, 2, 3, 4)),
    "statfs": (kernel.request(Opcode.STATFS), None),
    "release": (kernel.release(1, 2, 3, 4), bodies.Release(1, 2, 3, 4)),
    "releasedir": (kernel.release(1, 2, 3, 4, Opcode.RELEASEDIR), bodies.Release(1, 2, 3, 4)),
    "flush": (kernel.flush(5, 6), bodies.Flush(5, 6)),
    "fsync": (kernel.fsync(5, 1), bodies.Fsync(5, 1)),
    "fsyncdir": (kernel.fsync(5, 0, Opcode.FSYNCDIR), bodies.Fsync(5, 0)),
    "access": (kernel.access(4), 4),
    "getxattr": (kernel.getxattr(b"user.x", 100), bodies.Getxattr(b"user.x", 100)),
    "listxattr": (kernel.listxattr(0), 0),
    "interrupt": (kernel.interrupt(TOP64), TOP64),
    "forget": (kernel.forget(9), 9),
    "batch forget": (kernel.batch_forget([(1, 2), (TOP64, 3)]), (bodies.Forget(1, 2), bodies.Forget(TOP64, 3))),
    "batch forget of nothing": (kernel.batch_forget([]), ()),
    "destroy": (kernel.request(Opcode.DESTROY), None),
    "lseek": (kernel.lseek(1, 4096, 4), bodies.Lseek(1, 4096, 4)),
    "lseek below 0": (kernel.lseek(1, -5, 3), bodies.Lseek(1, -5, 3)),
    "statx": (kernel.statx(1, 2, 3, 4), bodies.Statx(1, 2, 3, 4)),
    "ioctl": (kernel.ioctl(10, 11, 12, b"in"), bodies.Ioctl(7, 0, 10, 11, 12, b"in")),
}
whole = pytest.mark.parametrize(("data", "value"), WHOLE.values(), ids=WHOLE.keys())


def decode(data: bytes) -> object:
    """As the channel does: the header first, then the body by its opcode."""
    request = requests.decode_request(data)
    return requests.DECODERS[request.opcode](request.data)


def with_size(data: bytes) -> bytes:
    """`data` with a header that says its true size, as far as there is one."""
    return len(data).to_bytes(4, "little") + data[4:] if len(data) >= 4 else data


@whole
def test_whole(data: bytes, value: object) -> None:
    assert decode(data) == value


@whole
def test_cut_short_is_refused_at_every_byte(data: bytes, value: object) -> None:
    for size in range(len(data)):
        with pytest.raises(FormatError):
            decode(data[:size])
        with pytest.raises(FormatError):
            decode(with_size(data[:size]))


@whole
def test_bytes_behind_it_are_refused(data: bytes, value: object) -> None:
    for more in (b"\0", b"x", bytes(8), bytes(16)):
        with pytest.raises(FormatError):
            decode(data + more)
        with pytest.raises(FormatError):
            decode(with_size(data + more))


def test_every_message_of_a_read_only_file_system_has_a_decoder() -> None:
    decoded = {requests.decode_request(data).opcode for data, _ in WHOLE.values()}
    assert decoded == set(requests.DECODERS)
    never_asked = {Opcode.GETLK, Opcode.SETLK, Opcode.SETLKW, Opcode.BMAP, Opcode.POLL, Opcode.NOTIFY_REPLY}
    never_asked |= {Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING, Opcode.SYNCFS, Opcode.INIT}
    assert decoded | codes.WRITING_OPCODES | never_asked == set(Opcode)
    assert not decoded & codes.WRITING_OPCODES


def test_header() -> None:
    data = kernel.request(99, b"body", unique=codes.RESENT_BIT | 6, node=TOP64)
    assert requests.decode_request(data) == bodies.Request(99, codes.RESENT_BIT | 6, TOP64, 1000, 1001, 4711, data)


@pytest.mark.parametrize("said", [0, 39, 41, 44, 46, TOP32])
def test_a_size_that_is_not_the_messages_own_is_refused(said: int) -> None:
    data = kernel.request(99, b"body!")
    with pytest.raises(FormatError, match=f"of 45 bytes says that it has {said}$"):
        requests.decode_request(said.to_bytes(4, "little") + data[4:])


@pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.READDIRPLUS, 99])
def test_a_refusal_names_what_was_asked(opcode: int) -> None:
    with pytest.raises(FormatError, match=f"FUSE {codes.opcode_name(opcode)} of 41 bytes"):
        requests.decode_read(kernel.request(opcode, b"x"))


def test_request_is_frozen() -> None:
    request = requests.decode_request(kernel.lookup(b"x"))
    with pytest.raises(AttributeError):
        request.node = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("opcode", "name"), [(1, "LOOKUP"), (53, "COPY_FILE_RANGE_64"), (54, "opcode 54"), (0, "opcode 0")]
)
def test_every_opcode_has_a_name(opcode: int, name: str) -> None:
    assert codes.opcode_name(requests.decode_request(kernel.request(opcode)).opcode) == name


def test_extensions_are_cut_off() -> None:
    data = kernel.request(Opcode.LOOKUP, b"name\0", extensions=b"\1" * 16)
    assert decode(data) == b"name"


@pytest.mark.parametrize("words", [1, 2, 0xFFFF])
def test_extensions_that_do_not_fit_are_refused(words: int) -> None:
    data = bytearray(kernel.request(Opcode.LOOKUP, b"n\0"))
    data[36:38] = words.to_bytes(2, "little")
    with pytest.raises(FormatError, match="extensions"):
        requests.decode_request(bytes(data))


@pytest.mark.parametrize("body", [b"", b"\0", b"name", b"na\0me\0", b"name\0\0", b"n" * 4096 + b"\0"])
def test_a_name_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(FormatError):
        requests.decode_lookup(kernel.request(Opcode.LOOKUP, body))
    with pytest.raises(FormatError):
        requests.decode_getxattr(kernel.request(Opcode.GETXATTR, bytes(8) + body))


def test_an_offset_below_zero_is_refused() -> None:
    with pytest.raises(FormatError):
        requests.decode_read(kernel.read(0, 2**63, 1, 0))


def test_a_count_of_forgets_is_not_trusted() -> None:
    for count in (1, 3, TOP32):
        with pytest.raises(FormatError):
            decode(kernel.batch_forget([(1, 1), (2, 2)], count=count))


def test_a_size_of_an_ioctl_is_not_trusted() -> None:
    for size in (1, 3, TOP32):
        with pytest.raises(FormatError):
            decode(kernel.ioctl(1, 2, 3, b"in", size=size))


@given(U64, st.integers(0, 2**63 - 1), U32, U32)
def test_read_keeps_every_number(handle: int, offset: int, size: int, flags: int) -> None:
    assert decode(kernel.read(handle, offset, size, flags)) == bodies.Read(handle, offset, size, flags)


@given(st.lists(st.tuples(U64, U64), max_size=50))
def test_batch_forget_keeps_every_number(ones: list[tuple[int, int]]) -> None:
    assert decode(kernel.batch_forget(ones)) == tuple(bodies.Forget(*one) for one in ones)


@given(st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name))
def test_lookup_keeps_every_name(name: bytes) -> None:
    assert decode(kernel.lookup(name)) == name


@given(st.sampled_from(sorted(requests.DECODERS)), st.binary(max_size=200), st.integers(0, 3))
def test_only_format_errors_come_of_any_bytes(opcode: int, body: bytes, words: int) -> None:
    data = bytearray(kernel.request(opcode, body))
    data[36:38] = words.to_bytes(2, "little")
    try:
        decode(bytes(data))
    except FormatError:
        return


@given(st.binary(max_size=200), st.sampled_from(list(requests.DECODERS.values())))
def test_only_format_errors_come_of_a_body_without_a_header(data: bytes, decoder: object) -> None:
    with contextlib.suppress(FormatError):
        requests.decode_request(data)
    with contextlib.suppress(FormatError):
        decoder(data)  # type: ignore[operator]


def test_a_lying_request_takes_no_memory() -> None:
    data = kernel.batch_forget([(1, 1)], count=TOP32)
    tracemalloc.start()
    with pytest.raises(FormatError):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
