"""How much is in the cache: one small file of sums that all processes keep together.

The sums are never below the truth while only cvfs writes to the cache: what is going to be stored is added before, what
was evicted is taken off after. A process that is killed in between leaves them too high, and so does the rare file that
two processes stored at once.

A recount of the files mends that. What it found and what was added since it began is never below the truth either, so
the lower of the two becomes the new sum. For that nothing may be half stored at its beginning: whoever stores holds a
shared lock meanwhile, which the kernel takes from the dead. Whoever wants that moment closes a gate before, or there
might be none for hours. What is taken off for files that were evicted before a recount's end is forgotten, if it was
found lower: it may not have counted them.

Where the file is lost or damaged the sums are unknown until a recount.
"""

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cvfs import flock
from cvfs.cache.directory import CacheDirectory, as_cache_error
from cvfs.errors import CacheError

KINDS = ("objects", "large", "packs", "blobs")
"""The directories whose files are counted."""

_MAGIC = b"cvfs-sum"
_RECORD = struct.Struct("=8sQQQQQd16s")
_CHECKSUM = struct.Struct("=I")
_SIZE = _RECORD.size + _CHECKSUM.size
_MUTEX = 0
"""The byte of the file whose lock is held for one change of it."""

_GATE = 1
"""The byte whose lock keeps others from beginning to store."""

_DEADLINE_S = 5.0
"""A change takes microseconds; a process that is stopped in the middle of one holds it forever."""

_GATE_S = 1.0
"""For how long the gate may be closed for a count. To store a batch takes milliseconds, longer on a disk that is
overloaded."""

_GATE_WAIT_S = 10.0
"""For how long an open gate is waited for: others that have to be sure whether there is room may come before."""


class Sums(NamedTuple):
    """Bytes that files take on the disk: `data` in objects, large files and packs, `metadata` in pages.

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

    def without(self, data: int, metadata: int) -> "Sums":
        """Take back what was added in vain. No recount began meanwhile, as who has added it holds the shared lock."""
        added_data, added_metadata = max(0, self.added_data - data), max(0, self.added_metadata - metadata)
        return self.minus(data, metadata)._replace(added_data=added_data, added_metadata=added_metadata)


Change = Callable[[Sums], Sums]
Changer = Callable[[Change], Sums]
"""Makes a change, with no other in between; the sums after it."""


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
            return Sums()
        finally:
            os.close(fd)

    def change(self, change: Change) -> Sums:
        """Replace the sums by what `change` makes of them, with no other change in between."""
        with self._opened() as fd:
            return self._change(fd, change)

    @contextlib.contextmanager
    def storing(self) -> Iterator[Changer]:
        """For as long as files are being stored: no recount begins. Gives what does the work of `change`."""
        with self._opened() as fd:
            try:
                flock.wait_until_free(fd, _GATE, _GATE_WAIT_S)
                flock.wait_lock(fd, _DEADLINE_S, shared=True)
            except OSError as error:
                raise self._failed(error) from error
            yield partial(self._change, fd)

    @contextlib.contextmanager
    def storing_after(self, decide: Callable[[Changer], None]) -> Iterator[Changer]:
        """As `storing`; before, `decide` is called where nobody else stores. No other call may change the sums in it
        but the one that it is given: locks may exclude each other within a process.

        Raises CacheError: somebody does not end; and what `decide` raises.
        """
        with self._opened() as fd:
            change = partial(self._change, fd)
            try:
                flock.wait_byte(fd, _GATE, _GATE_WAIT_S)
                flock.wait_lock(fd, _DEADLINE_S)
                decide(change)
                flock.wait_lock(fd, shared=True)  # which lets go of it before, but nobody passes the gate
                flock.unlock_byte(fd, _GATE)
            except OSError as error:
                raise self._failed(error) from error
            yield change

    @contextlib.contextmanager
    def nobody_storing(self) -> Iterator[Changer]:
        """For a moment in which nothing is half stored; else as `storing`. Raises CacheError: somebody does not end."""
        with self._opened() as fd:
            try:
                flock.wait_byte(fd, _GATE, _DEADLINE_S)
                flock.wait_lock(fd, _GATE_S)
            except OSError as error:
                raise self._failed(error) from error
            yield partial(self._change, fd)

    def recount(self, count: Callable[[], tuple[int, int]]) -> Sums | None:
        """Have the files counted: `count()` gives the bytes of data and metadata. None if another process does it,
        or somebody does not end storing."""
        with self._opened(".counting") as counting:
            try:
                if not flock.try_lock(counting):
                    return None
                with self.nobody_storing() as change:
                    before = change(lambda sums: sums)
            except OSError as error:
                raise self._failed(error) from error
            except CacheError:
                return None
            data, metadata = count()
            return self.change(lambda now: recounted(before, now, data, metadata))

    def _change(self, fd: int, change: Change) -> Sums:
        try:
            flock.wait_byte(fd, _MUTEX, _DEADLINE_S)
            try:
                found = _decode(os.pread(fd, _SIZE + 1, 0))
                sums = change(found or self._begin())
                if found is None:  # there may be more than one record has
                    os.ftruncate(fd, 0)
                os.pwrite(fd, _encode(sums), 0)
            finally:
                flock.unlock_byte(fd, _MUTEX)
        except OSError as error:
            raise self._failed(error) from error
        return sums

    def _failed(self, error: OSError) -> CacheError:
        if isinstance(error, TimeoutError):
            return CacheError(f"another process holds {self._path}")
        return as_cache_error(f"cannot write {self._path}", error)

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
        """Of a cache that has nothing in it yet the sums are known; not where the disk does not say what it has."""
        try:
            found = os.listdir(self._directory.path)
        except FileNotFoundError:
            found = []
        except OSError:
            return Sums()
        return Sums() if any(kind in found for kind in KINDS) else Sums(counted_s=time.time(), boot=boot_id())


def boot_id() -> bytes:
    """Sixteen bytes that are others after the next boot."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip().replace("-", ""))


def recounted(before: Sums, now: Sums, data: int, metadata: int) -> Sums:
    """The sums `now` after a count that began, where nothing was half stored, when they were `before`."""
    boot = boot_id()
    is_usable = now.is_known and now.boot == boot
    was_usable = is_usable and before.is_known and before.boot == boot and before.counts == now.counts
    was_counted = is_usable and before.counts < now.counts

    def bound(before: int, now: int, counted: int, added: int) -> int:
        """The lower of two upper bounds, unless more was found than the sums would allow: then they were wrong. Not
        those that another has counted meanwhile."""
        added = max(0, added)
        if was_counted or (was_usable and counted <= before + added):
            return min(now, counted + added)
        return counted + added

    return now._replace(
        data=bound(before.data, now.data, data, now.added_data - before.added_data),
        metadata=bound(before.metadata, now.metadata, metadata, now.added_metadata - before.added_metadata),
        counts=now.counts + 1,
        counted_s=time.time(),
        boot=boot,
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
