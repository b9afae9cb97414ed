"""Large objects: one sparse file each, filled chunk by chunk in any order, each chunk verified by its own id.

There is no map of what has arrived: a chunk is there if the bytes at its place hash to its id (BLAKE3 passes 4 GB/s;
a network does not). So a torn, altered or half-filled file is only a file with fewer chunks.

A file is named by its *recipe*, the hash of the list of its chunks, not by the content id that its publisher claims:
that claim cannot be checked before the last byte is here, and the cache is shared by publishers that need not trust
each other.
"""

import contextlib
import errno
import os
import time

from cvfs.cache.directory import CacheDirectory, as_cache_error
from cvfs.cache.files import NOT_A_FILE, remove, stamp
from cvfs.format.blob import digest
from cvfs.format.codec import encode
from cvfs.heap import unfilled
from cvfs.model import Content, Digest, Entry, Location

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # whatever is there, opening does not wait

_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
"""Not in a Python that was built for an old C library."""

_LEASE_S = 1.0
"""A process that is stopped while it holds a lease loses it only after /proc/sys/fs/lease-break-time: 45 s."""

_LEASE_POLL_S = 0.0005


def recipe_of(entry: Entry, content: Content) -> Digest:
    """The name of a chunked object in the cache: BLAKE3 of its size and of where each chunk goes."""
    chunks = [(at.object_offset, at.length, at.chunk_id) for at in content.locations]
    pages = [(offset, page.id) for offset, page in content.location_pages]
    return digest(encode((entry.size, entry.content_id, chunks, pages)))


class LargeFiles:
    """The sparse files below `large` of the cache directory. Synchronous; from any thread and process."""

    def __init__(self, directory: CacheDirectory) -> None:
        self._directory = directory
        self._root = os.fsencode(directory.path / "large")
        self._tells_what_is_in_memory = bool(_NOWAIT)
        """Some file systems do not, tmpfs for one."""

    def path(self, recipe: Digest) -> bytes:
        name = recipe.hex().encode()
        return b"%s/%s/%s" % (self._root, name[:2], name[2:])

    def stored_bytes(self, recipe: Digest) -> int:
        """How many bytes of an object take space on the disk."""
        try:
            return os.lstat(self.path(recipe)).st_blocks * 512
        except OSError:
            return 0

    def load(self, recipe: Digest, location: Location) -> memoryview | None:
        """The bytes of one chunk, verified; None if they have not arrived. Raises CacheError: the disk failed."""
        path = self.path(recipe)
        try:
            data = _read_at(path, location)
        except (FileNotFoundError, BlockingIOError):  # the latter: it is being evicted
            return None
        except OSError as error:
            if error.errno == errno.EIO:  # a bad sector, which a chunk that is written anew may mend
                return None
            if error.errno in NOT_A_FILE:
                remove(path)
                return None
            raise as_cache_error(f"cannot read {os.fsdecode(path)}", error) from error
        return data if digest(data) == location.chunk_id else None

    def load_nowait(self, recipe: Digest, location: Location) -> memoryview | None:
        """As `load`, where the kernel has the bytes in memory: no disk is waited for, nor who writes to the file. Else
        None, as for any error: `load` says what is wrong."""
        if self._tells_what_is_in_memory:
            with contextlib.suppress(OSError):
                fd = os.open(self.path(recipe), _FLAGS | os.O_RDONLY)
                try:
                    return self._read_nowait(fd, location)
                finally:
                    os.close(fd)
        return None

    def _read_nowait(self, fd: int, location: Location) -> memoryview | None:
        end = location.object_offset + location.length
        try:
            if not os.preadv(fd, [bytearray(1)], end - 1, _NOWAIT):  # before there is room made for all
                return None
            stamp(fd)
            data = _read(fd, location, _NOWAIT)
            if len(data) != location.length:  # not all is in memory
                return None
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._tells_what_is_in_memory = False
            return None
        return data if digest(data) == location.chunk_id else None

    def has_data(self, recipe: Digest, location: Location) -> bool:
        """Whether anything was ever stored where a chunk belongs: quickly says no, `load` says what it is worth."""
        with contextlib.suppress(OSError):
            fd = os.open(self.path(recipe), _FLAGS | os.O_RDONLY)
            try:
                return os.lseek(fd, location.object_offset, os.SEEK_DATA) < location.object_offset + location.length
            finally:
                os.close(fd)
        return False

    def store(self, recipe: Digest, size: int, location: Location, data: bytes | memoryview) -> None:
        """Put a verified chunk at its place in the file of an object of `size` bytes. Raises CacheError."""
        path = self.path(recipe)
        try:
            self._directory.make(os.path.dirname(path))
            fd = _open_to_write(path)
            try:
                if os.fstat(fd).st_size != size:
                    os.ftruncate(fd, size)
                _write_at(fd, data, location.object_offset)
            finally:
                os.close(fd)
        except OSError as error:
            raise as_cache_error(f"cannot write to the cache {self._directory.path}", error) from error


def _read_at(path: bytes, location: Location) -> memoryview:
    fd = os.open(path, _FLAGS | os.O_RDONLY)
    try:
        stamp(fd)
        return _read(fd, location)
    finally:
        os.close(fd)


def _read(fd: int, location: Location, flags: int = 0) -> memoryview:
    """What an open file has where a chunk belongs: fewer bytes where it ends."""
    data = unfilled(location.length, location.object_offset)
    return data[: os.preadv(fd, [data], location.object_offset, flags)]


def _open_to_write(path: bytes) -> int:
    """Waits while another thread or process looks whether the file can be evicted: for some microseconds."""
    deadline = time.monotonic() + _LEASE_S
    while True:
        try:
            return os.open(path, _FLAGS | os.O_WRONLY | os.O_CREAT, 0o600)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LEASE_POLL_S)


def _write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, offset)
        left, offset = left[written:], offset + written
