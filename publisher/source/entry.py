"""From what the kernel says of a file to its entry."""

import errno
import os
import stat

from cvfs.errors import PublishError
from cvfs.limits import MAX_ID, MAX_OBJECT_BYTES, MAX_XATTRS_BYTES
from cvfs.model import Entry

Xattrs = tuple[tuple[bytes, bytes], ...]

_NOT_SUPPORTED = (errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EACCES)
_MAX_RDEV = 0xFFFFFFFF
_MAX_TIME_NS = (1 << 63) - 1


def is_published(name: bytes) -> bool:
    """Which extended attributes belong to the software, not to the host it was built on.

    user.* and security.capability; trusted.* as far as the publisher may read them, but not what overlay file systems
    keep there. Not system.* (an ACL names users of this host, and its mask is in the mode already), not
    security.selinux, .ima, .evm and the like (labels and signatures of this host).
    """
    if name.startswith(b"trusted."):
        return not name.startswith(b"trusted.overlay.")
    return name.startswith(b"user.") or name == b"security.capability"


def read_xattrs(file: int | bytes) -> Xattrs:
    """The extended attributes to publish, sorted, of an open file or of a path (not followed). Raises OSError."""
    follow = isinstance(file, int)
    try:
        listed = os.listxattr(file, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return ()
        raise
    if not listed:
        return ()
    names = sorted(filter(is_published, map(os.fsencode, listed)))
    return tuple((name, os.getxattr(file, name, follow_symlinks=follow)) for name in names)


def make_entry(
    name: bytes, status: os.stat_result, xattrs: Xattrs, *, target: bytes = b"", content_id: bytes = b""
) -> Entry:
    """The entry of a file with a single name. Raises PublishError, without the path, if the format cannot hold it."""
    mode = status.st_mode
    size = len(target) if target else status.st_size if stat.S_ISREG(mode) else 0
    rdev = status.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0
    if xattrs and sum(len(key) + len(value) for key, value in xattrs) > MAX_XATTRS_BYTES:
        raise PublishError(f"extended attributes over {MAX_XATTRS_BYTES} bytes")
    if size > MAX_OBJECT_BYTES:
        raise PublishError(f"a file of {size} bytes is over the limit")
    if rdev > _MAX_RDEV:
        raise PublishError("a device number over 32 bits")
    if not -_MAX_TIME_NS <= status.st_mtime_ns <= _MAX_TIME_NS:
        raise PublishError("a time of modification before 1678 or after 2262")
    if status.st_uid > MAX_ID or status.st_gid > MAX_ID:
        raise PublishError(f"owner or group {MAX_ID + 1}")
    nlink = 2 if stat.S_ISDIR(mode) else 1
    mtime_ns = status.st_mtime_ns
    return Entry(name, mode, status.st_uid, status.st_gid, mtime_ns, size, nlink, 0, rdev, content_id, target, xattrs)


def is_unchanged(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether two looks at a file saw the same file in the same state."""
    return (
        before.st_ctime_ns == after.st_ctime_ns
        and before.st_size == after.st_size
        and before.st_mtime_ns == after.st_mtime_ns
        and before.st_ino == after.st_ino
        and before.st_dev == after.st_dev
    )
