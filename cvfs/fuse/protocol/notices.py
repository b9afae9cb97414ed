"""What is said to the kernel unasked: messages with `unique` 0, their code where a reply has its error.

Written from inside a request's handler, an INVAL can deadlock with a request in flight: a thread of its own writes
them. ENOENT from the write means that the kernel had nothing to forget.
"""

import struct
from typing import Final

from cvfs.errors import FormatError
from cvfs.fuse.protocol.codes import MAX_LOOKUP_BYTES, Notice

_HEADER: Final = struct.Struct("=IiQ")
_INVAL_INODE: Final = struct.Struct("=IiQQqq")
_INVAL_ENTRY: Final = struct.Struct("=IiQQII")


def encode_inval_inode(node: int, offset: int = 0, length: int = 0) -> bytes:
    """struct fuse_notify_inval_inode_out: forget attributes, and cached bytes `offset` to `offset + length`.

    A length of 0 or less means to the end (of a directory: its cached listing); an `offset` below 0 keeps the bytes.
    """
    return _INVAL_INODE.pack(_INVAL_INODE.size, Notice.INVAL_INODE, 0, node, offset, length)


def encode_inval_entry(parent: int, name: bytes, flags: int = 0) -> bytes:
    """struct fuse_notify_inval_entry_out: forget what `name` in `parent` is, also that it is not there.

    `flags` may be EXPIRE_ONLY where INIT agreed on HAS_EXPIRE_ONLY.
    """
    if not 0 < len(name) <= MAX_LOOKUP_BYTES:
        raise FormatError(f"no directory has a name of {len(name)} bytes to invalidate")
    size = _INVAL_ENTRY.size + len(name) + 1
    return _INVAL_ENTRY.pack(size, Notice.INVAL_ENTRY, 0, parent, len(name), flags) + name + b"\0"


def encode_resend() -> bytes:
    """Have every request that was read and not answered queued again (INIT must have agreed on HAS_RESEND)."""
    return _HEADER.pack(_HEADER.size, Notice.RESEND, 0)


def encode_inc_epoch() -> bytes:
    """Have every cached name looked up again before its next use (`Session.has_inc_epoch`)."""
    return _HEADER.pack(_HEADER.size, Notice.INC_EPOCH, 0)
