"""What requests are once decoded: frozen values, each named by the struct of `linux/fuse.h` that it was."""

import msgspec


class Request(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_in_header. `unique` is what the reply must carry, `node` what the request is about (0: nothing).

    `uid`, `gid` and `pid` are the caller's, in the mount's user namespace; 0 where the kernel asks on its own account.
    `data` is the whole message, header included, extensions cut off: what the decoders below take.
    """

    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int
    data: bytes


class Getattr(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_getattr_in. `handle` counts only if `flags` has GETATTR_FH."""

    flags: int
    handle: int


class Read(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_read_in, for READ, READDIR and READDIRPLUS: at most `size` bytes of the answer from `offset` on.

    In a directory `offset` is a cookie: 0, the `next_offset` of an earlier record, or any number lseek(2) was given.
    `size` is up to 4 GiB: do not allocate by it. `flags` are those of open(2). Without OPEN, `handle` is 0.
    """

    handle: int
    offset: int
    size: int
    flags: int


class Open(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_open_in, for OPEN and OPENDIR: `flags` are those of open(2), `open_flags` are FUSE_OPEN_*."""

    flags: int
    open_flags: int


class Release(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_release_in, for RELEASE and RELEASEDIR."""

    handle: int
    flags: int
    release_flags: int
    lock_owner: int


class Flush(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_flush_in."""

    handle: int
    lock_owner: int


class Fsync(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_fsync_in, for FSYNC and FSYNCDIR."""

    handle: int
    flags: int


class Getxattr(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_getxattr_in and the name. `size` is the caller's room in bytes, 0 to ask for the value's size."""

    name: bytes
    size: int


class Forget(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_forget_one."""

    node: int
    lookups: int


class Lseek(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_lseek_in. `whence` is os.SEEK_DATA or os.SEEK_HOLE; others do not get here.

    The kernel passes any `offset` the caller gave, negative ones too (lseek(2) wants ENXIO for them).
    """

    handle: int
    offset: int
    whence: int


class Statx(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_statx_in: `mask` says which fields the caller wants; `handle` counts if `flags` has GETATTR_FH."""

    flags: int
    handle: int
    statx_flags: int
    mask: int


class Ioctl(msgspec.Struct, frozen=True, gc=False):
    """struct fuse_ioctl_in and the `payload` that the caller's argument points to."""

    handle: int
    flags: int
    command: int
    argument: int
    room: int
    payload: bytes
