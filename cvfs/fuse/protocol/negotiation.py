"""INIT, the first request of every connection: what the kernel offers, what is taken of it, and what both then know.

The kernel sends its version and flags, the answer has ours, and both go by the lower minor version and the flags of the
answer. A kernel of a newer major version is told ours, and asks again with it.
"""

import struct
from typing import Final

import msgspec

from cvfs.errors import FormatError
from cvfs.fuse.protocol.codes import (
    INC_EPOCH_MINOR,
    MAJOR,
    MAX_WRITE_BYTES,
    NEWEST_MINOR,
    OLDEST_MINOR,
    InitFlag,
)
from cvfs.fuse.protocol.replies import encode_reply
from cvfs.fuse.protocol.requests import HEADER_BYTES

_VERSION: Final = struct.Struct("=II")
_INIT_IN: Final = struct.Struct("=IIII")
_FLAGS2: Final = struct.Struct("=I")
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHHIIH22x")
_WORD: Final = 0xFFFF_FFFF

MAX_BACKGROUND: Final = 512
"""READs at once, for those who wait for one as well as ahead of them: behind so many that wait for a dead server, all
others wait too, also for what is cached. So there are far more than the kernel's own 12; and fewer than the tasks of a
channel."""

READ_ONLY_FLAGS: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.DO_READDIRPLUS
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.NO_OPENDIR_SUPPORT
    | InitFlag.EXPLICIT_INVAL_DATA
    | InitFlag.HAS_EXPIRE_ONLY
    | InitFlag.HAS_RESEND
    | InitFlag.NO_EXPORT_SUPPORT
)
"""What a read-only file system whose inodes never change asks for.

EXPLICIT_INVAL_DATA: cached pages are dropped only when INVAL_INODE says so, never on account of new attributes.
NO_EXPORT_SUPPORT: lookups of `.` and `..` by number are not answered.
"""


FLEETING_FLAGS: Final = READ_ONLY_FLAGS & ~InitFlag.EXPLICIT_INVAL_DATA | InitFlag.AUTO_INVAL_DATA
"""With it the kernel looks at attributes before it gives out cached bytes, and asks if they hold no more."""


class Offer(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_init_in. `flags` has both words; the second is 0 where the first lacks INIT_EXT (before 7.36)."""

    major: int
    minor: int
    max_readahead_bytes: int
    flags: InitFlag


class Wishes(msgspec.Struct, frozen=True, gc=False):
    """What we ask for in INIT; the kernel lowers what is above its limits.

    What is read ahead of anybody is bounded by `congestion_threshold`; `max_pages` of 4096 bytes is the size of one
    READ; `request_timeout_s` goes with REQUEST_TIMEOUT: 0 is none.
    """

    flags: InitFlag = READ_ONLY_FLAGS
    max_readahead_bytes: int = 1 << 20
    max_background: int = MAX_BACKGROUND
    congestion_threshold: int = 48
    max_pages: int = 256
    request_timeout_s: int = 0


class Session(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_init_out: what kernel and file system have agreed on for the life of the mount."""

    minor: int
    flags: InitFlag
    max_readahead_bytes: int
    max_background: int
    congestion_threshold: int
    max_pages: int
    request_timeout_s: int

    @property
    def has_inc_epoch(self) -> bool:
        return self.minor >= INC_EPOCH_MINOR

    @property
    def has_resend(self) -> bool:
        return bool(self.flags & InitFlag.HAS_RESEND)


def decode_init(data: bytes) -> Offer:
    """INIT: struct fuse_init_in in each of its lengths: 16 bytes before 7.36, 64 since, and whatever comes later.

    Of another major version only the two numbers are read. A version too old is decoded too: `negotiate` judges.
    """
    body = memoryview(data)[HEADER_BYTES:]
    if len(body) < _VERSION.size:
        raise FormatError(f"FUSE INIT of {len(data)} bytes: no version in it")
    major, minor = _VERSION.unpack_from(body)
    if major != MAJOR:
        return Offer(major, minor, 0, InitFlag(0))
    if len(body) < _INIT_IN.size:
        raise FormatError(f"FUSE INIT {major}.{minor} of {len(data)} bytes: no flags in it")
    _, _, max_readahead, flags = _INIT_IN.unpack_from(body)
    if flags & InitFlag.INIT_EXT:
        flags |= _second_word(body) << 32
    return Offer(major, minor, max_readahead, InitFlag(flags))


def negotiate(offer: Offer, wishes: Wishes) -> Session | None:
    """The session that an offer allows; None if the kernel is to be told our version and will offer again.

    Raises FormatError: the kernel is too old to be talked to (below 7.31, Linux 5.4).
    """
    if offer.major > MAJOR:
        return None
    if (offer.major, offer.minor) < (MAJOR, OLDEST_MINOR):
        raise FormatError(
            f"the kernel speaks FUSE {offer.major}.{offer.minor}, and {MAJOR}.{OLDEST_MINOR} (Linux 5.4) is needed"
        )
    flags = offer.flags & wishes.flags
    if flags >> 32:
        flags |= InitFlag.INIT_EXT
    return Session(
        minor=min(offer.minor, NEWEST_MINOR),
        flags=flags,
        max_readahead_bytes=min(offer.max_readahead_bytes, wishes.max_readahead_bytes),
        max_background=wishes.max_background,
        congestion_threshold=wishes.congestion_threshold,
        max_pages=wishes.max_pages if flags & InitFlag.MAX_PAGES else 0,
        request_timeout_s=wishes.request_timeout_s if flags & InitFlag.REQUEST_TIMEOUT else 0,
    )


def encode_init(unique: int, session: Session) -> bytes:
    """The answer to INIT: struct fuse_init_out, 64 bytes, with max_write as low as can be and a resolution of 1 ns."""
    flags = int(session.flags)
    packed = _INIT_OUT.pack(
        MAJOR,
        session.minor,
        session.max_readahead_bytes,
        flags & _WORD,
        session.max_background,
        session.congestion_threshold,
        MAX_WRITE_BYTES,
        1,
        session.max_pages,
        0,
        flags >> 32,
        0,
        session.request_timeout_s,
    )
    return encode_reply(unique, packed)


def encode_our_version(unique: int) -> bytes:
    """The answer to an INIT of a newer major version: ours, and nothing else that counts."""
    return encode_reply(unique, _VERSION.pack(MAJOR, NEWEST_MINOR).ljust(_INIT_OUT.size, b"\0"))


def _second_word(body: memoryview) -> int:
    """flags2 of struct fuse_init_in."""
    if len(body) < _INIT_IN.size + _FLAGS2.size:
        raise FormatError(f"FUSE INIT of {len(body)} bytes promises a second word of flags and has none")
    word: int = _FLAGS2.unpack_from(body, _INIT_IN.size)[0]
    return word
