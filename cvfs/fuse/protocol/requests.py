"""What the kernel asks: the header of every request, and the bodies of those that a read-only file system meets.

`decode_request` comes first; the decoder of the body takes its `data`. The kernel is obeyed to the byte: the sizes
below are those of every protocol version from 7.31 on, so a body that is longer or shorter is refused.
"""

import struct
import sys
from collections.abc import Callable
from typing import Final

from cvfs.errors import FormatError
from cvfs.fuse.protocol.bodies import (
    Flush,
    Forget,
    Fsync,
    Getattr,
    Getxattr,
    Ioctl,
    Lseek,
    Open,
    Read,
    Release,
    Request,
    Statx,
)
from cvfs.fuse.protocol.codes import MAX_LOOKUP_BYTES, Opcode, opcode_name

_HEADER: Final = struct.Struct("=IIQQIIIHxx")
HEADER_BYTES: Final = _HEADER.size

_GETATTR: Final = struct.Struct("=I4xQ")
_READ: Final = struct.Struct("=QqI12xI4x")
_OPEN: Final = struct.Struct("=II")
_RELEASE: Final = struct.Struct("=QIIQ")
_FLUSH: Final = struct.Struct("=Q8xQ")
_FSYNC: Final = struct.Struct("=QI4x")
_XATTR: Final = struct.Struct("=I4x")
_ACCESS: Final = struct.Struct("=I4x")
_UNSIGNED: Final = struct.Struct("=Q")
_FORGET_COUNT: Final = struct.Struct("=I4x")
_FORGET_ONE: Final = struct.Struct("=QQ")
_LSEEK: Final = struct.Struct("=QqI4x")
_STATX: Final = struct.Struct("=I4xQII")
_IOCTL: Final = struct.Struct("=QIIQII")

_GETATTR_BYTES: Final = HEADER_BYTES + _GETATTR.size
_READ_BYTES: Final = HEADER_BYTES + _READ.size


def decode_request(data: bytes) -> Request:
    """struct fuse_in_header of one whole message. Any opcode passes, known or not."""
    try:
        size, opcode, unique, node, uid, gid, pid, extension_words = _HEADER.unpack_from(data)
    except struct.error:
        raise FormatError(f"FUSE request of {len(data)} bytes: shorter than its header") from None
    if size != len(data):
        raise FormatError(f"FUSE request of {len(data)} bytes says that it has {size}")
    if extension_words:
        data = _without_extensions(data, extension_words * 8)
    return Request(opcode, unique, node, uid, gid, pid, data)


def decode_lookup(data: bytes) -> bytes:
    """LOOKUP: the name looked up in the header's node; longer than NAME_MAX if the caller's is (ENAMETOOLONG)."""
    return _name(data, HEADER_BYTES)


def decode_getattr(data: bytes) -> Getattr:
    """GETATTR: struct fuse_getattr_in."""
    if len(data) != _GETATTR_BYTES:
        raise _wrong_size(data)
    return Getattr(*_GETATTR.unpack_from(data, HEADER_BYTES))


def decode_read(data: bytes) -> Read:
    """READ, READDIR, READDIRPLUS: struct fuse_read_in. An offset below 0 is refused: loff_t has no such position."""
    if len(data) != _READ_BYTES:
        raise _wrong_size(data)
    handle, offset, size, flags = _READ.unpack_from(data, HEADER_BYTES)
    if offset < 0:
        raise FormatError(f"FUSE {_asked(data)} from the offset {offset}")
    return Read(handle, offset, size, flags)


def decode_open(data: bytes) -> Open:
    """OPEN, OPENDIR: struct fuse_open_in."""
    return Open(*_body(_OPEN, data))


def decode_release(data: bytes) -> Release:
    """RELEASE, RELEASEDIR: struct fuse_release_in."""
    return Release(*_body(_RELEASE, data))


def decode_flush(data: bytes) -> Flush:
    """FLUSH: struct fuse_flush_in."""
    return Flush(*_body(_FLUSH, data))


def decode_fsync(data: bytes) -> Fsync:
    """FSYNC, FSYNCDIR: struct fuse_fsync_in."""
    return Fsync(*_body(_FSYNC, data))


def decode_access(data: bytes) -> int:
    """ACCESS: struct fuse_access_in: the mask of access(2). With default_permissions the kernel never asks."""
    mask: int = _body(_ACCESS, data)[0]
    return mask


def decode_getxattr(data: bytes) -> Getxattr:
    """GETXATTR: struct fuse_getxattr_in, then the name."""
    (size,) = _start(_XATTR, data)
    return Getxattr(_name(data, HEADER_BYTES + _XATTR.size), size)


def decode_listxattr(data: bytes) -> int:
    """LISTXATTR: struct fuse_getxattr_in: the caller's room in bytes, 0 to ask for the size of the list."""
    size: int = _body(_XATTR, data)[0]
    return size


def decode_interrupt(data: bytes) -> int:
    """INTERRUPT: struct fuse_interrupt_in: the `unique` of the request whose caller no longer waits."""
    unique: int = _body(_UNSIGNED, data)[0]
    return unique


def decode_forget(data: bytes) -> int:
    """FORGET: struct fuse_forget_in: how many lookups of the header's node are forgotten."""
    lookups: int = _body(_UNSIGNED, data)[0]
    return lookups


def decode_batch_forget(data: bytes) -> tuple[Forget, ...]:
    """BATCH_FORGET: struct fuse_batch_forget_in, then that many struct fuse_forget_one."""
    (count,) = _start(_FORGET_COUNT, data)
    ones = memoryview(data)[HEADER_BYTES + _FORGET_COUNT.size :]
    if len(ones) != count * _FORGET_ONE.size:
        raise _wrong_size(data)
    return tuple(Forget(node, lookups) for node, lookups in _FORGET_ONE.iter_unpack(ones))


def decode_lseek(data: bytes) -> Lseek:
    """LSEEK: struct fuse_lseek_in."""
    return Lseek(*_body(_LSEEK, data))


def decode_statx(data: bytes) -> Statx:
    """STATX: struct fuse_statx_in."""
    return Statx(*_body(_STATX, data))


def decode_ioctl(data: bytes) -> Ioctl:
    """IOCTL: struct fuse_ioctl_in, then in_size bytes."""
    handle, flags, command, argument, size, room = _start(_IOCTL, data)
    payload = data[HEADER_BYTES + _IOCTL.size :]
    if len(payload) != size:
        raise _wrong_size(data)
    return Ioctl(handle, flags, command, argument, room, payload)


def decode_nothing(data: bytes) -> None:
    """READLINK, STATFS, DESTROY: the header is all."""
    if len(data) != HEADER_BYTES:
        raise FormatError(f"FUSE request of {len(data)} bytes: nothing should follow its header")


DECODERS: Final[dict[int, Callable[[bytes], object]]] = {
    Opcode.LOOKUP: decode_lookup,
    Opcode.FORGET: decode_forget,
    Opcode.GETATTR: decode_getattr,
    Opcode.READLINK: decode_nothing,
    Opcode.OPEN: decode_open,
    Opcode.READ: decode_read,
    Opcode.STATFS: decode_nothing,
    Opcode.RELEASE: decode_release,
    Opcode.FSYNC: decode_fsync,
    Opcode.GETXATTR: decode_getxattr,
    Opcode.LISTXATTR: decode_listxattr,
    Opcode.FLUSH: decode_flush,
    Opcode.OPENDIR: decode_open,
    Opcode.READDIR: decode_read,
    Opcode.RELEASEDIR: decode_release,
    Opcode.FSYNCDIR: decode_fsync,
    Opcode.ACCESS: decode_access,
    Opcode.INTERRUPT: decode_interrupt,
    Opcode.DESTROY: decode_nothing,
    Opcode.IOCTL: decode_ioctl,
    Opcode.BATCH_FORGET: decode_batch_forget,
    Opcode.READDIRPLUS: decode_read,
    Opcode.LSEEK: decode_lseek,
    Opcode.STATX: decode_statx,
}
"""The decoder of each body; INIT's is in `negotiation`. The channel calls those of what it answers by name. All of them
are held against the kernel's header and recorded sessions by tests, for an engine or a trace that wants more."""


def _body(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    """The fields of a body that is `layout` and nothing more."""
    if len(data) != HEADER_BYTES + layout.size:
        raise _wrong_size(data)
    return layout.unpack_from(data, HEADER_BYTES)


def _start(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    """The fields of `layout` at the start of a body of variable size."""
    if len(data) < HEADER_BYTES + layout.size:
        raise _wrong_size(data)
    return layout.unpack_from(data, HEADER_BYTES)


def _name(data: bytes, start: int) -> bytes:
    """The name from `start` to the NUL that ends the message. (bytes.find with a start takes three times as long.)"""
    name = data[start:-1]
    if not start + 1 < len(data) <= start + MAX_LOOKUP_BYTES + 1 or data[-1] or 0 in name:
        raise FormatError(f"FUSE {_asked(data)}: no name of 1 to {MAX_LOOKUP_BYTES} bytes and one NUL at its end")
    return name


def _without_extensions(data: bytes, size: int) -> bytes:
    """The message without the struct fuse_ext_header and their contents at its end."""
    if size > len(data) - HEADER_BYTES:
        raise FormatError(f"FUSE request of {len(data)} bytes: extensions of {size} bytes do not fit")
    return data[:-size]


def _wrong_size(data: bytes) -> FormatError:
    return FormatError(f"FUSE {_asked(data)} of {len(data)} bytes: its fields need another size")


def _asked(data: bytes) -> str:
    """The name of the opcode in a header, or in what there is of one."""
    return opcode_name(int.from_bytes(data[4:8], sys.byteorder))
