"""One fetch of a blob among all processes that share a cache, and among all repositories within one.

A lock is a byte range of one file, at an offset that the blob's id gives: nothing to create, nothing to clean up, and
the kernel releases it when its holder dies. Ranges of different blobs may coincide: they then wait for each other.
"""

import contextlib
import os

from cvfs import flock
from cvfs.cache.directory import CacheDirectory
from cvfs.model import Digest


class Lock:
    """A lock that is held, or an excuse for one where locks cannot be had: fetching twice is no harm."""

    def __init__(self, locks: "BlobLocks | None", offset: int) -> None:
        self._locks, self._offset = locks, offset

    def release(self) -> None:
        """Let go of it; once more does nothing."""
        if self._locks is not None:
            self._locks.release(self._offset)
            self._locks = None


NO_LOCK = Lock(None, 0)


class BlobLocks:
    """Locks on blobs. For one thread, the event loop's."""

    def __init__(self, directory: CacheDirectory) -> None:
        self._held: set[int] = set()
        self._fd: int | None = None
        try:
            self._fd = os.open(directory.path / "locks", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            self._fd = None

    def try_lock(self, blob_id: Digest) -> Lock | None:
        """The lock of a blob; None if it is held already, here or in another process."""
        offset = _offset(blob_id)
        if offset in self._held or not self._try_byte(offset):
            return None
        self._held.add(offset)
        return Lock(self, offset)

    def release(self, offset: int) -> None:
        self._held.discard(offset)
        if self._fd is not None:
            with contextlib.suppress(OSError):
                flock.unlock_byte(self._fd, offset)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _try_byte(self, offset: int) -> bool:
        """A disk that fails has no locks: fetching twice is no harm."""
        try:
            return self._fd is None or flock.try_byte(self._fd, offset)
        except OSError:
            return True


def _offset(blob_id: Digest) -> int:
    return int.from_bytes(blob_id[:7], "little")
