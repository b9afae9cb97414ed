"""What the kernel is answered. A reply is one `bytes` for one write(2), or the buffers of one writev(2).

The answers that are given often are put together from pieces that can be kept: 88 bytes of attributes, which depend on
the entry alone, and 24 bytes of validity, which depend on the mount alone.
"""

import errno
import struct
from collections.abc import Iterable
from typing import Final, NewType

import msgspec

from cvfs.errors import FormatError

_HEADER: Final = struct.Struct("=IiQ")
HEADER_BYTES: Final = _HEADER.size
DIRENT_BYTES: Final = 24
DIRENTPLUS_BYTES: Final = 152
"""The sizes of one record without its name."""

_ATTR: Final = struct.Struct("=QQQqqqIIIIIIIIII")
_VALIDITY: Final = struct.Struct("=QQII")
_HEADER_AND_ENTRY: Final = struct.Struct("=IiQQQ24s88s")
_HEADER_AND_ATTR: Final = struct.Struct("=IiQQI4x88s")
_ENTRY_AND_DIRENT: Final = struct.Struct("=QQ24s88s8sQII")
_DIRENT: Final = struct.Struct("=QQII")
_OPEN: Final = struct.Struct("=QIi")
_STATFS: Final = struct.Struct("=QQQQQIII28x")
_XATTR_SIZE: Final = struct.Struct("=I4x")
_OFFSET: Final = struct.Struct("=Q")
_STATX: Final = struct.Struct("=QII16x")
_STATX_STAT: Final = struct.Struct("=IIQIIIH2xQQQQ")
_STATX_TIME: Final = struct.Struct("=qI4x")
_STATX_DEVICES: Final = struct.Struct("=IIII112x")

_ENTRY_REPLY_BYTES: Final = _HEADER_AND_ENTRY.size
_ATTR_REPLY_BYTES: Final = _HEADER_AND_ATTR.size
_PADDING: Final = tuple(bytes(-length % 8) for length in range(8))
_NANOSECONDS: Final = 1_000_000_000
_LONGEST_S: Final = (1 << 31) - 1
_BASIC_STATS: Final = 0x7FF
"""STATX_BASIC_STATS of linux/stat.h."""

MAX_PARTS: Final = 512
"""Of a READ's data; one writev(2) takes 1024."""

Attr = NewType("Attr", bytes)
"""struct fuse_attr, 88 bytes: made by `encode_attr`, once for an entry."""
Validity = NewType("Validity", bytes)
"""The four timeouts of struct fuse_entry_out, 24 bytes: made by `encode_validity`, once for a mount."""

NO_ATTR: Final = Attr(bytes(_ATTR.size))


class Statfs(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_kstatfs: what statvfs(3) says. Counts of blocks are in units of `fragment_size` bytes."""

    blocks: int
    free_blocks: int
    files: int
    free_files: int
    block_size: int
    fragment_size: int
    name_max: int


def encode_reply(unique: int, payload: bytes = b"") -> bytes:
    """struct fuse_out_header and a payload that is already encoded."""
    return _HEADER.pack(HEADER_BYTES + len(payload), 0, unique) + payload


def encode_read(unique: int, *parts: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    """READ: the buffers of a writev(2), so that nothing is copied. Fewer bytes than asked for: the end."""
    if len(parts) > MAX_PARTS:
        parts = (b"".join(parts),)
    size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
    return _HEADER.pack(HEADER_BYTES + size, 0, unique), *parts


def encode_error(unique: int, number: int) -> bytes:
    """struct fuse_out_header with an errno. What the kernel would refuse (EINVAL on write) is answered as EIO."""
    if not 0 < number < 512:
        number = errno.EIO
    return _HEADER.pack(HEADER_BYTES, -number, unique)


def encode_attr(
    ino: int,
    mode: int,
    nlink: int,
    uid: int,
    gid: int,
    rdev: int,
    size: int,
    blocks: int,
    block_size: int,
    mtime_ns: int,
) -> Attr:
    """struct fuse_attr. Fields are those of stat(2), `blocks` of 512 bytes; `mtime_ns` since 1970, negative before, is
    atime and ctime too, which a repository does not have.

    `rdev` is the kernel's 32-bit device number, which os.makedev() agrees with for majors below 4096.
    Raises FormatError: a number does not fit its field.
    """
    s, ns = divmod(mtime_ns, _NANOSECONDS)
    try:
        encoded = _ATTR.pack(ino, size, blocks, s, s, s, ns, ns, ns, mode, nlink, uid, gid, rdev, block_size, 0)
    except struct.error as error:
        raise FormatError(f"attributes of inode {ino:#x} do not fit struct fuse_attr: {error}") from None
    return Attr(encoded)


def encode_validity(entry_s: float, attr_s: float) -> Validity:
    """entry_valid, attr_valid and their nanoseconds in struct fuse_entry_out: how long the kernel may believe a
    name, and attributes. Cut to 0...2^31-1 s (68 years), which no kernel's arithmetic of jiffies overflows at."""
    entry, entry_rest = _timeout(entry_s)
    attr, attr_rest = _timeout(attr_s)
    return Validity(_VALIDITY.pack(entry, attr, entry_rest, attr_rest))


def encode_entry(unique: int, node: int, attr: Attr, validity: Validity) -> bytes:
    """LOOKUP: struct fuse_entry_out. The generation is 0: a node's number is never used again for anything else."""
    return _HEADER_AND_ENTRY.pack(_ENTRY_REPLY_BYTES, 0, unique, node, 0, validity, attr)


def encode_no_entry(unique: int, validity: Validity) -> bytes:
    """LOOKUP: "there is no such name", which the kernel remembers as long as `validity` says; ENOENT it would not."""
    return _HEADER_AND_ENTRY.pack(_ENTRY_REPLY_BYTES, 0, unique, 0, 0, validity, NO_ATTR)


def encode_attributes(unique: int, attr: Attr, attr_s: int) -> bytes:
    """GETATTR: struct fuse_attr_out; valid for `attr_s` whole seconds."""
    return _HEADER_AND_ATTR.pack(_ATTR_REPLY_BYTES, 0, unique, attr_s, 0, attr)


def encode_dirent(name: bytes, ino: int, kind: int, next_offset: int) -> bytes:
    """READDIR: one struct fuse_dirent, padded to 8 bytes. `kind` is st_mode >> 12 & 15; `next_offset`, not 0, is the
    offset of the READDIR that continues after it."""
    return b"".join((_DIRENT.pack(ino, next_offset, len(name), kind), name, _PADDING[len(name) & 7]))


def encode_direntplus(name: bytes, node: int, kind: int, next_offset: int, attr: Attr, validity: Validity) -> bytes:
    """READDIRPLUS: one struct fuse_direntplus, padded to 8 bytes: the dirent, and what LOOKUP of the name would say.

    With node 0 the kernel takes the name alone, as it does for `.` and `..` in any case; the dirent's inode number is
    that of `attr`.
    """
    fixed = _ENTRY_AND_DIRENT.pack(node, 0, validity, attr, attr[:8], next_offset, len(name), kind)
    return b"".join((fixed, name, _PADDING[len(name) & 7]))


def encode_records(unique: int, records: Iterable[bytes], room: int) -> bytes:
    """READDIR, READDIRPLUS: as many whole records from the first on as fit into `room`, the request's `size`.

    No record at all means the end of the directory; so one that does not fit into an empty answer is an error, EINVAL.
    """
    taken: list[bytes] = []
    left = room
    for record in records:
        left -= len(record)
        if left < 0:
            break
        taken.append(record)
    if left < 0 and not taken:
        return encode_error(unique, errno.EINVAL)
    return encode_reply(unique, b"".join(taken))


def encode_open(unique: int, handle: int, flags: int) -> bytes:
    """OPEN, OPENDIR: struct fuse_open_out. `flags` are OpenFlag."""
    return encode_reply(unique, _OPEN.pack(handle, flags, 0))


def encode_statfs(unique: int, statfs: Statfs) -> bytes:
    """STATFS: struct fuse_statfs_out."""
    blocks, files = (statfs.blocks, statfs.free_blocks, statfs.free_blocks), (statfs.files, statfs.free_files)
    sizes = (statfs.block_size, statfs.name_max, statfs.fragment_size)
    return encode_reply(unique, _STATFS.pack(*blocks, *files, *sizes))


def encode_xattr(unique: int, value: bytes, room: int) -> bytes:
    """GETXATTR, LISTXATTR: with a `room` of 0 the value's size, struct fuse_getxattr_out; else the value, or ERANGE."""
    if not room:
        return encode_reply(unique, _XATTR_SIZE.pack(len(value)))
    if len(value) > room:
        return encode_error(unique, errno.ERANGE)
    return encode_reply(unique, value)


def join_names(names: Iterable[bytes]) -> bytes:
    """The value of LISTXATTR: each name with a NUL after it."""
    return b"".join(name + b"\0" for name in names)


def encode_lseek(unique: int, offset: int) -> bytes:
    """LSEEK: struct fuse_lseek_out."""
    return encode_reply(unique, _OFFSET.pack(offset))


def encode_statx(unique: int, attr: Attr, attr_s: int) -> bytes:
    """STATX: struct fuse_statx_out with what `attr` knows: STATX_BASIC_STATS, so no birth time.

    The kernel asks only for birth times, and again each time: ENOSYS, once, is the better answer where there are none.
    """
    ino, size, blocks, *times, mode, nlink, uid, gid, rdev, block_size, _flags = _ATTR.unpack(attr)
    atime, mtime, ctime = (_STATX_TIME.pack(*time) for time in zip(times[:3], times[3:], strict=True))
    return encode_reply(
        unique,
        _STATX.pack(attr_s, 0, 0)
        + _STATX_STAT.pack(_BASIC_STATS, block_size, 0, nlink, uid, gid, mode, ino, size, blocks, 0)
        + b"".join((atime, bytes(_STATX_TIME.size), ctime, mtime))
        + _STATX_DEVICES.pack(rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00, 0, 0),
    )


def _timeout(seconds: float) -> tuple[int, int]:
    """Whole seconds and the nanoseconds that are left."""
    bounded = min(max(seconds, 0), _LONGEST_S)
    return int(bounded), int(bounded % 1 * _NANOSECONDS)
