"""The limit of the cache: room is reserved before something is stored, made by evicting what was used least recently.

Whoever stores evicts, in its own thread: nobody who reads waits for that. All processes keep one ledger, so the limit
holds for them together, for pages too.

There are two bounds. The limit proper is never exceeded. Free space on the disk, which others use as well, is
approached: while it lacks, several times what is stored is evicted, so that the cache gives way, but not all of it at
once.
"""

import contextlib
import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from cvfs.cache.directory import CacheDirectory, as_cache_error
from cvfs.cache.files import remove_leftovers
from cvfs.cache.ledger import KINDS, Change, Ledger, Sums, boot_id
from cvfs.cache.pins import Pins
from cvfs.errors import CacheError, CacheFullError
from cvfs.model import Digest

DEFAULT_LIMIT_BYTES = 20_000_000_000
DEFAULT_SHARE = 0.8
"""Of what would be free without the cache, if that is less."""

METADATA_PART = 4
"""The limit divided by this is what pages may take before unneeded ones are evicted. Of a whole repository pages are
one per cent."""

_SLACK_PART = 64
_MAX_SLACK_BYTES = 64 << 20
"""So much, and at most this part of the cache, is evicted beyond what is needed, so as not to do it again for each
pack."""

_HASTE = 4
"""While the disk lacks free space, this times what is stored is evicted."""

_GIVE_WAY_PART = 8
"""Of the cache, at most, that gives way to others on the disk each time that `maintain` is called."""

_RECOUNT_S = 86400.0
_INDEX_S = 10.0
_REST_S = 60.0
"""For how long pages are not looked through again when all were needed."""

_SAMPLED_SHARDS = 16
_TOLERATED_BYTES = 64 << 20
_MAX_BLOCK_BYTES = 64 << 10


class Limits(NamedTuple):
    """Settings: `cache_limit` in bytes or as a share of the disk (None: the default), `keep_free` likewise."""

    cache_limit: int | float | None = None
    keep_free: int | float = 0.05


class Space(NamedTuple):
    """The disk that the cache is on, in bytes."""

    size: int
    free: int


class Use(NamedTuple):
    """In bytes. Those that are used are None until they have been counted."""

    limit_bytes: int
    used_bytes: int | None
    metadata_bytes: int | None
    free_bytes: int
    keep_free_bytes: int


class Room:
    """Space that was reserved for files that are about to be stored."""

    def __init__(self, quota: "Quota", left: int) -> None:
        self._quota = quota
        self.left = left
        """Bytes of the disk that are not filled yet."""

    def fill(self, size: int, write: Callable[[], None]) -> None:
        """Call `write`, which stores a file of `size` bytes; once more, after evicting, if the disk turns out full.

        Raises CacheError.
        """
        on_disk = self._quota.on_disk(size)
        try:
            write()
        except CacheFullError:
            self._quota.evict_data(_HASTE * on_disk)
            write()
        self.left -= on_disk


class _Want(NamedTuple):
    """What shall be stored, and what has to be evicted for it because the disk lacks space."""

    data: int
    metadata: int
    disk_lack: int

    @property
    def size(self) -> int:
        return self.data + self.metadata


class Quota:
    """The limit of one cache directory. From any thread. `needed()` are pages that must not be evicted.

    All methods raise CacheError if the disk fails.
    """

    def __init__(self, directory: CacheDirectory, limits: Limits, needed: Callable[[], Collection[Digest]]) -> None:
        self._directory, self._limits, self._needed = directory, limits, needed
        self._block: int | None = None
        self._index = (0, 0.0)
        self._resting_until = 0.0
        self.ledger = Ledger(directory)
        self.pins = Pins(directory)
        self.evicted_bytes = 0
        """Since the start, by this process."""

    @contextlib.contextmanager
    def room(self, data: Sequence[int] = (), metadata: Sequence[int] = ()) -> Iterator[Room]:
        """Room for files of these sizes, data or metadata; what is not filled in the context is given back.

        Raises CacheFullError: there is none, and nothing may be evicted that would change that.
        """
        size = sum(map(self.on_disk, data)), sum(map(self.on_disk, metadata))
        with contextlib.ExitStack() as storing:
            change = self._reserve(storing, *size)
            room = Room(self, sum(size))
            try:
                yield room
            finally:
                if room.left:
                    unused = (room.left, 0) if size[0] else (0, room.left)
                    change(lambda sums: sums.minus(*unused))

    def on_disk(self, size: int) -> int:
        """What a file of `size` bytes takes."""
        if self._block is None:
            self._block = min(max(self._statvfs().f_frsize, 512), _MAX_BLOCK_BYTES)
        return -(-size // self._block) * self._block

    def evict_data(self, size: int) -> int:
        """Evict `size` bytes of data, or what there is; the bytes freed."""
        return self._evict(size, of_metadata=False)

    def use(self) -> Use:
        """What is used, and what may be."""
        space, sums = self._space(), self.ledger.read()
        used, metadata = (sums.total, sums.metadata) if sums.is_known else (None, None)
        limit = self._limit(space)
        if self._limits.cache_limit is None:
            limit = min(limit, int(DEFAULT_SHARE * (space.free + sums.total)))
        return Use(limit, used, metadata, space.free, _part(self._limits.keep_free, space))

    def status(self) -> dict[str, int | None]:
        """As `use`, for whoever asks a mount; nothing if the disk fails."""
        try:
            return {**self.use()._asdict(), "evicted_bytes": self.evicted_bytes}
        except CacheError:
            return {}

    def maintain(self) -> None:
        """Count again if the sums are unknown, old or implausible; then evict what is too much. To be called now and
        then."""
        sums = self.ledger.read()
        if not self._is_plausible(sums):
            sums = self.recount() or sums
        if not sums.is_known:
            return
        space = self._space()
        lack = min(self._disk_lack(space, sums), sums.total // _GIVE_WAY_PART)
        self._evict(max(lack, sums.total - self._limit(space)), of_metadata=False)
        self._evict_pages(0, self._limit(space) // METADATA_PART)

    def recount(self) -> Sums | None:
        """Count all files, which takes 3 us for each. None if another process does, or stores all the time."""
        from cvfs.cache.shards import count

        for kind in KINDS:
            remove_leftovers(os.fsencode(self._directory.path / kind))
        return self.ledger.recount(lambda: count(self._directory.path))

    def evict_to(self, size: int) -> int:
        """Evict data, and where that is not enough pages, until all takes `size` bytes; the bytes freed."""
        freed = self._evict(self.ledger.read().total - size, of_metadata=False)
        return freed + self._evict(self.ledger.read().total - size, of_metadata=True)

    def wipe(self) -> int:
        """Remove all that is stored, also what is pinned, needed or open; the bytes freed."""
        both = (self._evict(1 << 62, of_metadata=kind, everything=True) for kind in (False, True))
        return sum(both)

    def _reserve(self, storing: contextlib.ExitStack, data: int, metadata: int) -> Callable[[Change], Sums]:
        """Add to the sums what will be stored, once there is room. `storing` ends when it has been."""
        space = self._space()
        disk_lack = self._disk_lack(space, self.ledger.read(), data + metadata)
        want = _Want(data, metadata, min(disk_lack, _HASTE * (data + metadata)))
        if metadata:
            self._evict_pages(metadata, self._limit(space) // METADATA_PART)
        freed = 0
        while True:
            with contextlib.ExitStack() as attempt:
                change = attempt.enter_context(self.ledger.storing())
                sums, lack = self._take(change, want, self._limit(space), freed)
                if lack <= 0:
                    storing.push(attempt.pop_all())
                    return change
            freed += self._make_room(want, sums, lack, self._limit(space))

    def _take(self, change: Callable[[Change], Sums], want: _Want, limit: int, freed: int) -> tuple[Sums, int]:
        """The sums, with what is wanted if there is room for it; and how much has to be evicted else."""
        lack = 0

        def take(sums: Sums) -> Sums:
            nonlocal lack
            # What was not counted is taken to be at its limit: as much goes as comes.
            over = sums.total + want.size - limit if sums.is_known else want.size - freed
            lack = max(over, want.disk_lack - freed)
            return sums if lack > 0 else sums.plus(want.data, want.metadata)

        return change(take), lack

    def _make_room(self, want: _Want, sums: Sums, lack: int, limit: int) -> int:
        """Evict what is lacking, and some more; the bytes freed, 0 if there is another chance after a recount."""
        freed = 0
        if want.size <= limit:
            freed = self._evict(lack + min(sums.total // _SLACK_PART, _MAX_SLACK_BYTES), of_metadata=False)
        if not freed and (sums.is_known or self.recount() is None):
            raise CacheFullError(f"no room for {want.size} bytes more in the cache {self._directory.path}")
        return freed

    def _evict_pages(self, more: int, bound: int) -> None:
        """Have pages within their bound with `more` bytes of them, as far as they are not needed."""
        excess = self.ledger.read().metadata + more - bound
        if excess > 0 and time.monotonic() >= self._resting_until:
            slack = min(bound // _SLACK_PART, _MAX_SLACK_BYTES)
            if not self._evict(excess + slack, of_metadata=True):
                self._resting_until = time.monotonic() + _REST_S

    def _evict(self, size: int, *, of_metadata: bool, everything: bool = False) -> int:
        """The bytes freed. Each step is taken off the sums, unless they were counted anew meanwhile."""
        if size <= 0:
            return 0
        from cvfs.cache.eviction import evict
        from cvfs.cache.shards import DATA, METADATA

        kinds = METADATA if of_metadata else DATA
        keep = _nothing if everything else self._needed_of_shard() if of_metadata else self.pins.of_shard
        total, counts = 0, self.ledger.read().counts
        for freed in evict(self._directory.path, kinds, size, keep, open_too=everything):
            self.ledger.change(partial(_take_off, counts, (0, freed) if of_metadata else (freed, 0)))
            total += freed
        self.evicted_bytes += total
        return total

    def _needed_of_shard(self) -> Callable[[int], Collection[bytes]]:
        needed = self._needed()
        return lambda number: self.pins.of_shard(number).union(needed)

    def _is_plausible(self, sums: Sums) -> bool:
        """Whether the sums can be believed: they are not old, and a sample of the files does not speak against it."""
        from cvfs.cache.shards import SHARDS, disk_bytes, list_shard

        if sums.boot != boot_id() or not 0 <= time.time() - sums.counted_s < _RECOUNT_S:
            return False
        numbers = random.sample(range(SHARDS), _SAMPLED_SHARDS)
        sampled = sum(disk_bytes(list_shard(self._directory.path, kind, each)) for kind in KINDS for each in numbers)
        estimate = sampled * SHARDS // _SAMPLED_SHARDS
        return abs(estimate - sums.total) <= max(estimate, sums.total) // 2 + _TOLERATED_BYTES

    def _limit(self, space: Space) -> int:
        """What objects, large files and pages may take, so that they and the inode index are within the limit."""
        said = self._limits.cache_limit
        return (DEFAULT_LIMIT_BYTES if said is None else _part(said, space)) - self._index_bytes()

    def _disk_lack(self, space: Space, sums: Sums, size: int = 0) -> int:
        """By how much less than it should be free would be with `size` bytes more in the cache."""
        lack = _part(self._limits.keep_free, space) + size - space.free
        if self._limits.cache_limit is None:
            lack = max(lack, int(sums.total + size - DEFAULT_SHARE * (space.free + sums.total)))
        return lack

    def _index_bytes(self) -> int:
        """What the inode index takes, looked up now and then: it grows in large steps."""
        size, until = self._index
        if time.monotonic() >= until:
            from cvfs.cache.shards import file_bytes

            size = sum(map(file_bytes, (self._directory.path / "index").glob("*")))
            self._index = size, time.monotonic() + _INDEX_S
        return size

    def _space(self) -> Space:
        found = self._statvfs()
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    def _statvfs(self) -> os.statvfs_result:
        try:
            try:
                return os.statvfs(self._directory.path)
            except FileNotFoundError:
                self._directory.make(os.fsencode(self._directory.path))
                return os.statvfs(self._directory.path)
        except OSError as error:
            raise as_cache_error(f"cannot use the cache {self._directory.path}", error) from error


def _part(said: int | float, space: Space) -> int:
    """A size, or a share of the disk."""
    return int(said * space.size) if isinstance(said, float) else said


def _take_off(counts: int, freed: tuple[int, int], sums: Sums) -> Sums:
    return sums.minus(*freed) if sums.counts == counts else sums


def _nothing(_: int) -> Collection[bytes]:
    return ()
