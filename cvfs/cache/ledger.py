"""How much is in the cache: one small file of sums that all processes keep together.

The sums are never below the truth while only cvfs writes to the cache: what is going to be stored is added before, what
was evicted is taken off after. A process that is killed in between leaves them too high. A recount of the files mends
that, and the rare file that two processes stored at once: its result is what was counted and all that was added since
it began. For that nothing may be half stored at its beginning: who stores holds a shared lock meanwhile, which the
kernel takes from the dead; and what is taken off for files that were evicted before its end is forgotten, as it may
not have counted them.

Where the file is lost or damaged the sums are unknown until a recount.
"""

import contextlib
import errno
import fcntl
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cvfs.cache.directory import CacheDirectory, as_cache_error
from cvfs.cache.locks import try_range
from cvfs.errors import CacheError

KINDS = ("objects", "large", "blobs")
"""The directories whose files are counted."""

_MAGIC = b"cvfs-sum"
_RECORD = struct.Struct("=8sQQQQQd16s")
_CHECKSUM = struct.Struct("=I")
_SIZE = _RECORD.size + _CHECKSUM.size
_MUTEX = 0
"""The byte of the file whose lock is held for one change of it."""

_DEADLINE_S = 5.0
"""A change takes microseconds; a process that is stopped in the middle of one holds it forever."""

_POLL_S = 0.001


class Sums(NamedTuple):
    """Bytes that files take on the disk: `data` in objects and large files, `metadata` in pages.

    `added` is all that was ever added to either, `counts` the number of recounts, `counted_s` when the last one ended
    (0: there was none, the sums mean nothing), `boot` in which boot.
    """

    data: int = 0
    metadata: int = 0
    added_data: int = 0
    added_metadata: int = 0
    counts: int = 0
    counted_s: float = 0.0
    boot: bytes = b""

    @property
    def total(self) -> int:
        return self.data + self.metadata

    @property
    def is_known(self) -> bool:
        return self.counted_s > 0

    def plus(self, data: int, metadata: int) -> "Sums":
        return Sums(
            self.data + data,
            self.metadata + metadata,
            self.added_data + data,
            self.added_metadata + metadata,
            *self[4:],
        )

    def minus(self, data: int, metadata: int) -> "Sums":
        return self._replace(data=max(0, self.data - data), metadata=max(0, self.metadata - metadata))


Change = Callable[[Sums], Sums]


class Ledger:
    """The file `usage` of the cache directory. From any thread and process; each call opens the file anew.

    Errors: CacheError, the disk failed or another process does not let go of the file.
    """

    def __init__(self, directory: CacheDirectory) -> None:
        self._directory = directory
        self._path = directory.path / "usage"

    def read(self) -> Sums:
        """What the file says now; unknown sums if it is lost or damaged."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return self._begin()
        try:
            return _decode(os.pread(fd, _SIZE + 1, 0)) or self._begin()
        except OSError:
            return self._begin()
        finally:
            os.close(fd)

    def change(self, change: Change) -> Sums:
        """Replace the sums by what `change` makes of them, with no other change in between."""
        with self._opened() as fd:
            return self._change(fd, change)

    @contextlib.contextmanager
    def storing(self) -> Iterator[Callable[[Change], Sums]]:
        """For as long as files are being stored: no recount begins. Gives what does the work of `change`."""
        with self._opened() as fd:
            # Only a recount that begins excludes it: not for long.
            _wait(lambda: _try_flock(fd, fcntl.LOCK_SH), self._path)
            yield lambda change: self._change(fd, change)

    def recount(self, count: Callable[[], tuple[int, int]]) -> Sums | None:
        """Have the files counted: `count()` gives the bytes of data and metadata. None if another process does it,
        or something is being stored all the time."""
        with self._opened() as fd, self._opened(".counting") as counting:
            if not _try_flock(counting, fcntl.LOCK_EX):
                return None
            try:
                _wait(lambda: _try_flock(fd, fcntl.LOCK_EX), self._path)
                before = self._change(fd, lambda sums: sums)
            except CacheError:
                return None
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)
            data, metadata = count()
            return self._change(fd, lambda now: _recounted(before, now, data, metadata))

    def _change(self, fd: int, change: Change) -> Sums:
        try:
            _wait(lambda: try_range(fd, fcntl.F_WRLCK, _MUTEX), self._path)
            try:
                sums = change(_decode(os.pread(fd, _SIZE + 1, 0)) or self._begin())
                os.pwrite(fd, _encode(sums), 0)
            finally:
                try_range(fd, fcntl.F_UNLCK, _MUTEX)
        except OSError as error:
            raise as_cache_error(f"cannot write {self._path}", error) from error
        return sums

    @contextlib.contextmanager
    def _opened(self, suffix: str = "") -> Iterator[int]:
        path = f"{self._path}{suffix}"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            try:
                fd = os.open(path, flags, 0o600)
            except FileNotFoundError:
                self._directory.make(os.fsencode(self._directory.path))
                fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise as_cache_error(f"cannot write {path}", error) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _begin(self) -> Sums:
        """Of a cache that has nothing in it yet the sums are known."""
        if any((self._directory.path / kind).exists() for kind in KINDS):
            return Sums()
        return Sums(counted_s=time.time(), boot=boot_id())


def boot_id() -> bytes:
    """Sixteen bytes that are others after the next boot."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip().replace("-", ""))


def _recounted(before: Sums, now: Sums, data: int, metadata: int) -> Sums:
    return now._replace(
        data=data + max(0, now.added_data - before.added_data),
        metadata=metadata + max(0, now.added_metadata - before.added_metadata),
        counts=now.counts + 1,
        counted_s=time.time(),
        boot=boot_id(),
    )


def _encode(sums: Sums) -> bytes:
    record = _RECORD.pack(_MAGIC, *sums)
    return record + _CHECKSUM.pack(zlib.crc32(record))


def _decode(data: bytes) -> Sums | None:
    """None if `data` is not a whole record."""
    if len(data) != _SIZE or _CHECKSUM.unpack_from(data, _RECORD.size)[0] != zlib.crc32(data[: _RECORD.size]):
        return None
    magic, *values = _RECORD.unpack_from(data)
    return Sums(*values) if magic == _MAGIC else None


def _try_flock(fd: int, kind: int) -> bool:
    """False if another holds it. Where the file system has no locks, there is nobody to hold one."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _wait(attempt: Callable[[], bool], path: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not attempt():
        if time.monotonic() > deadline:
            raise CacheError(f"another process holds {path}")
        time.sleep(_POLL_S)
