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
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return _is_had(error)
    return True


def wait_lock(fd: int, deadline_s: float = DEADLINE_S, *, shared: bool = False) -> None:
    """Lock an open file within `deadline_s` from now. Blocks: for threads.

    Raises TimeoutError, an OSError: another does not let go of it; OSError: the disk failed.
    """
    if not try_lock(fd, shared=shared):
        _poll(lambda: try_lock(fd, shared=shared), deadline_s)


def unlock(fd: int) -> None:
    """Let go of the lock of an open file, as closing it does. Raises OSError: the disk failed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError as error:
        _is_had(error)


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
    try:
        _set_byte(fd, fcntl.F_WRLCK, offset)
    except OSError as error:
        return _is_had(error)
    return True


def wait_byte(fd: int, offset: int, deadline_s: float = DEADLINE_S) -> None:
    """Lock one byte of a file that is open for writing. Blocks, and raises, as `wait_lock` does."""
    if not try_byte(fd, offset):
        _poll(lambda: try_byte(fd, offset), deadline_s)


def wait_until_free(fd: int, offset: int, deadline_s: float = DEADLINE_S) -> None:
    """Wait until nobody has locked this byte, without locking it. Blocks, and raises, as `wait_lock` does."""
    if not _is_free(fd, offset):
        _poll(lambda: _is_free(fd, offset), deadline_s)


def unlock_byte(fd: int, offset: int) -> None:
    """Let go of the lock of one byte. Raises OSError: the disk failed."""
    try:
        _set_byte(fd, fcntl.F_UNLCK, offset)
    except OSError as error:
        _is_had(error)


def _set_byte(fd: int, kind: int, offset: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _RANGE.pack(kind, os.SEEK_SET, offset, 1, 0))


def _is_free(fd: int, offset: int) -> bool:
    """Asks as a reader would: where flock(2) is made of such locks, as on NFS, shared ones are on all bytes."""
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _RANGE.pack(fcntl.F_RDLCK, os.SEEK_SET, offset, 1, 0))
    except OSError as error:
        return _is_had(error)
    return bool(_RANGE.unpack(found)[0] == fcntl.F_UNLCK)


def _is_had(error: OSError) -> bool:
    """What was meant by a refusal: False if another holds the lock, True if there are no locks. Raises what else it
    may be."""
    if error.errno in _HELD:
        return False
    if error.errno not in _NO_LOCKS:
        raise error
    return True


def _poll(attempt: Callable[[], bool], deadline_s: float) -> None:
    deadline = time.monotonic() + deadline_s
    while not attempt():
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "another process does not let go of a lock")
        time.sleep(_POLL_S)
