"""One fetch of a blob among all processes that share a cache.

A lock is a byte range of one file, at an offset that the blob's id gives: nothing to create, nothing to clean up, and
the kernel releases it when its holder dies. Ranges of different blobs may coincide: they then wait for each other.
"""

import errno
import fcntl
import os

from cvfs.cache.directory import CacheDirectory
from cvfs.model import Digest


class BlobLocks:
    """Locks on blobs. POSIX locks belong to the process: within it, callers must not fetch one blob twice at once."""

    def __init__(self, directory: CacheDirectory) -> None:
        self._fd: int | None = None
        if directory.writable:
            try:
                self._fd = os.open(directory.path / "locks", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:
                self._fd = None

    def try_lock(self, blob_id: Digest) -> bool:
        """Whether this process now holds the lock. True as well where locks cannot be had: fetching twice is no harm."""
        if self._fd is None:
            return True
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(blob_id))
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True

    def unlock(self, blob_id: Digest) -> None:
        if self._fd is not None:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _offset(blob_id))

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _offset(blob_id: Digest) -> int:
    return int.from_bytes(blob_id[:7], "little")
