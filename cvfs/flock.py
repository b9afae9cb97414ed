"""Locks on open files, between processes and within one: of whole files (flock(2)) and of single bytes of them.

The kernel takes both from whoever dies. One policy for all: a file system that has no locks, as Lustre or NFS may not,
has nobody who could hold one, so they are had at once; `works` tells where that would do harm. Nobody waits for a lock
forever, as a process that is frozen or hangs in its disk may hold it.

Byte locks are of the kind that belongs to an open file (F_OFD_SETLK in fcntl(2)), not to a process: those of a process
are lost when any part of it closes the file, and do not hold between two parts of it.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable

DEADLINE_S = 5.0
"""All locks but those of fetches are held for milliseconds."""

_POLL_S = 0.001
_HELD = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_RANGE = struct.Struct("@hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock an open file, or change the lock that it has; False if another holds it. Raises OSError: the disk failed."""
    return _is_had(lambda: fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB))


def wait_lock(fd: int, deadline_s: float = DEADLINE_S, *, shared: bool = False) -> None:
    """Lock an open file within `deadline_s` from now. Blocks: for threads.

    Raises TimeoutError, an OSError: another does not let go of it; OSError: the disk failed.
    """
    _wait(lambda: try_lock(fd, shared=shared), deadline_s)


def unlock(fd: int) -> None:
    """Let go of the lock of an open file, as closing it does. Raises OSError: the disk failed."""
    _is_had(lambda: fcntl.flock(fd, fcntl.LOCK_UN))


def works(fd: int) -> bool:
    """Whether the file system of an open file has locks. The file must not be locked by us."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError as error:
        return error.errno in _HELD
    return True


def try_byte(fd: int, offset: int) -> bool:
    """Lock one byte of a file that is open for writing; False if another holds it. Raises OSError: the disk failed."""
    return _is_had(lambda: _set_byte(fd, fcntl.F_WRLCK, offset))


def wait_byte(fd: int, offset: int, deadline_s: float = DEADLINE_S) -> None:
    """Lock one byte of a file that is open for writing. Blocks, and raises, as `wait_lock` does."""
    _wait(lambda: try_byte(fd, offset), deadline_s)


def unlock_byte(fd: int, offset: int) -> None:
    """Let go of the lock of one byte. Raises OSError: the disk failed."""
    _is_had(lambda: _set_byte(fd, fcntl.F_UNLCK, offset))


def _set_byte(fd: int, kind: int, offset: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _RANGE.pack(kind, os.SEEK_SET, offset, 1, 0))


def _is_had(lock: Callable[[], object]) -> bool:
    try:
        lock()
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _wait(attempt: Callable[[], bool], deadline_s: float) -> None:
    if attempt():
        return
    deadline = time.monotonic() + deadline_s
    while not attempt():
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "another process does not let go of a lock")
        time.sleep(_POLL_S)
