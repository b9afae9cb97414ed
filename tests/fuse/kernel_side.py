"""The kernel's half of the protocol, for tests: requests encoded, replies decoded.

Layouts are spelled out here once more, field by field with the padding, so that a slip in `cvfs.fuse.protocol` shows.
"""

import struct
from typing import Any, NamedTuple

from cvfs.fuse.protocol.codes import Opcode


def request(opcode: int, body: bytes = b"", *, unique: int = 2, node: int = 1, extensions: bytes = b"") -> bytes:
    """struct fuse_in_header, the body, the extensions."""
    size = 40 + len(body) + len(extensions)
    header = struct.pack("=IIQQIIIHH", size, opcode, unique, node, 1000, 1001, 4711, len(extensions) // 8, 0)
    return header + body + extensions


def lookup(name: bytes) -> bytes:
    return request(Opcode.LOOKUP, name + b"\0")


def getattr_(flags: int, handle: int) -> bytes:
    return request(Opcode.GETATTR, struct.pack("=IIQ", flags, 0, handle))


def read(handle: int, offset: int, size: int, flags: int, opcode: int = Opcode.READ) -> bytes:
    fields = (handle, offset, size, 0xAAAA, 0xBBBB, flags, 0)
    return request(opcode, struct.pack("=QQIIQII", *fields))


def open_(flags: int, open_flags: int, opcode: int = Opcode.OPEN) -> bytes:
    return request(opcode, struct.pack("=II", flags, open_flags))


def release(handle: int, flags: int, release_flags: int, owner: int, opcode: int = Opcode.RELEASE) -> bytes:
    return request(opcode, struct.pack("=QIIQ", handle, flags, release_flags, owner))


def flush(handle: int, owner: int) -> bytes:
    return request(Opcode.FLUSH, struct.pack("=QIIQ", handle, 0, 0, owner))


def fsync(handle: int, flags: int, opcode: int = Opcode.FSYNC) -> bytes:
    return request(opcode, struct.pack("=QII", handle, flags, 0))


def access(mask: int) -> bytes:
    return request(Opcode.ACCESS, struct.pack("=II", mask, 0))


def getxattr(name: bytes, size: int) -> bytes:
    return request(Opcode.GETXATTR, struct.pack("=II", size, 0) + name + b"\0")


def listxattr(size: int) -> bytes:
    return request(Opcode.LISTXATTR, struct.pack("=II", size, 0))


def interrupt(unique: int) -> bytes:
    return request(Opcode.INTERRUPT, struct.pack("=Q", unique))


def forget(lookups: int) -> bytes:
    return request(Opcode.FORGET, struct.pack("=Q", lookups))


def batch_forget(ones: list[tuple[int, int]], count: int | None = None) -> bytes:
    body = b"".join(struct.pack("=QQ", *one) for one in ones)
    return request(Opcode.BATCH_FORGET, struct.pack("=II", len(ones) if count is None else count, 0) + body)


def lseek(handle: int, offset: int, whence: int) -> bytes:
    return request(Opcode.LSEEK, struct.pack("=QqII", handle, offset, whence, 0))


def statx(flags: int, handle: int, statx_flags: int, mask: int) -> bytes:
    return request(Opcode.STATX, struct.pack("=IIQII", flags, 0, handle, statx_flags, mask))


def ioctl(command: int, argument: int, room: int, payload: bytes, size: int | None = None) -> bytes:
    in_size = len(payload) if size is None else size
    return request(Opcode.IOCTL, struct.pack("=QIIQII", 7, 0, command, argument, in_size, room) + payload)


def init(major: int, minor: int, readahead: int, flags: int, size: int = 64) -> bytes:
    """struct fuse_init_in, cut or filled up to `size` bytes."""
    words = struct.pack("=IIIII", major, minor, readahead, flags & 0xFFFFFFFF, flags >> 32)
    return request(Opcode.INIT, words.ljust(size, b"\0")[:size], node=0)


class Reply(NamedTuple):
    unique: int
    error: int
    payload: bytes


def reply(message: bytes) -> Reply:
    """struct fuse_out_header; refuses what fuse_dev_do_write() refuses."""
    size, error, unique = struct.unpack_from("=IiQ", message)
    assert size == len(message)
    assert -512 < error <= 0
    assert error == 0 or size == 16
    return Reply(unique, error, message[16:])


ATTR_FIELDS = "ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags"


def attr(data: bytes) -> dict[str, int]:
    return dict(zip(ATTR_FIELDS.split(), struct.unpack("=QQQqqqIIIIIIIIII", data), strict=True))


class EntryOut(NamedTuple):
    node: int
    generation: int
    entry_valid: int
    attr_valid: int
    entry_valid_nsec: int
    attr_valid_nsec: int
    attr: dict[str, int]


def entry_out(data: bytes) -> EntryOut:
    return EntryOut(*struct.unpack("=QQQQII", data[:40]), attr(data[40:]))


class Dirent(NamedTuple):
    name: bytes
    ino: int
    offset: int
    kind: int
    entry: EntryOut | None


def dirents(data: bytes, plus: bool) -> list[Dirent]:
    """As parse_dirfile() and parse_dirplusfile() of the kernel walk them."""
    found = []
    while data:
        entry = entry_out(data[:128]) if plus else None
        fixed = 152 if plus else 24
        ino, offset, length, kind = struct.unpack_from("=QQII", data, fixed - 24)
        whole = (fixed + length + 7) & ~7
        assert 0 < length <= 4096
        assert len(data) >= whole
        found.append(Dirent(data[fixed : fixed + length], ino, offset, kind, entry))
        assert data[fixed + length : whole] == bytes(whole - fixed - length)
        data = data[whole:]
    return found


def init_out(data: bytes) -> dict[str, Any]:
    names = "major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages "
    names += "map_alignment flags2 max_stack_depth request_timeout"
    assert len(data) == 64
    return dict(zip(names.split(), struct.unpack("=IIIIHHIIHHIIH", data[:42]), strict=True))
