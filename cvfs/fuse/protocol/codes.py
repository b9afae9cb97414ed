"""The numbers of `linux/fuse.h`: what they are called there, less the prefix FUSE_."""

import enum
from typing import Final

MAJOR: Final = 7
OLDEST_MINOR: Final = 31
"""Linux 5.4: MAX_PAGES (7.28), CACHE_SYMLINKS (7.28), and NO_OPENDIR_SUPPORT (7.29) are there."""
NEWEST_MINOR: Final = 45

ROOT_NODE: Final = 1

MAX_WRITE_BYTES: Final = 4096
"""What INIT announces as max_write: the smallest the kernel obeys. Nothing is ever written, and the kernel demands a
read buffer of at least this and 80 bytes more."""
READ_BUFFER_BYTES: Final = 128 << 10
"""For one read of the descriptor. Above FUSE_MIN_READ_BUFFER (8 KiB) only so that one BATCH_FORGET may bring 8,000
forgotten nodes; below glibc's threshold of fresh mappings for each read (measured: 1 MiB costs 14 us more)."""
MAX_LOOKUP_BYTES: Final = 4095
"""FUSE_NAME_MAX, PATH_MAX - 1 (1024 before Linux 6.14): the kernel leaves it to us to refuse longer names than 255."""


class Opcode(enum.IntEnum):
    """enum fuse_opcode. Compare a request's `opcode` as the integer it is: a newer kernel may send others."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


WRITING_OPCODES: Final = frozenset(
    int(opcode)
    for opcode in (
        Opcode.SETATTR,
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.LINK,
        Opcode.WRITE,
        Opcode.SETXATTR,
        Opcode.REMOVEXATTR,
        Opcode.CREATE,
        Opcode.FALLOCATE,
        Opcode.RENAME2,
        Opcode.COPY_FILE_RANGE,
        Opcode.TMPFILE,
        Opcode.COPY_FILE_RANGE_64,
    )
)
"""To be answered EROFS. On a mount with MS_RDONLY the kernel does so itself; one that was remounted writable asks."""

UNANSWERED_OPCODES: Final = frozenset(int(opcode) for opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT))
"""A reply to one of these is an error, ENOENT; INTERRUPT alone may be answered EAGAIN ("ask again") or ENOSYS."""


def opcode_name(opcode: int) -> str:
    """For logs and metrics: "READ", or "opcode 99" where this protocol has no name for it."""
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"opcode {opcode}"


class Notice(enum.IntEnum):
    """enum fuse_notify_code: which notification a message with `unique` 0 is."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7
    """Since Linux 6.9 (7.40): every request that was read and not answered is queued again."""
    INC_EPOCH = 8
    """Since Linux 6.16 (7.44): every dentry is looked up again before it is used."""


INC_EPOCH_MINOR: Final = 44
"""No flag of INIT says that INC_EPOCH is there; the minor version does."""


class InitFlag(enum.IntFlag):
    """The flags of INIT, both words as one number (flags | flags2 << 32)."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    INIT_RESERVED = 1 << 31
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


class OpenFlag(enum.IntFlag):
    """FOPEN_*: what the answer to OPEN or OPENDIR allows the kernel."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


GETATTR_FH: Final = 1 << 0
"""In getattr_flags: the handle is valid."""
EXPIRE_ONLY: Final = 1 << 0
"""In the flags of INVAL_ENTRY: look the name up again before its next use, but drop nothing now (HAS_EXPIRE_ONLY)."""
RESENT_BIT: Final = 1 << 63
"""FUSE_UNIQUE_RESEND, in `unique`: the request was queued again after RESEND. Answer it with the bit."""

DEV_IOC_CLONE: Final = 0x8004E500
"""_IOR(229, 0, uint32_t): makes a freshly opened /dev/fuse one more descriptor of the connection of the one given."""
