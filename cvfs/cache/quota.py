"""The limit of the cache: space is reserved before something is stored, made by evicting what was used least recently.

Whoever stores evicts, in its own thread. All processes keep one ledger, so the limit holds for them together, for pages
too.

There are two bounds. The limit proper is never exceeded. Free space on the disk, which others use as well, is
approached: while it lacks, several times what is stored is evicted, so that the cache gives way, but not all of it at
once.
"""

import contextlib
import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from cvfs.cache.admission import HASTE, Admission, slack
from cvfs.cache.directory import CacheDirectory
from cvfs.cache.evictor import Evictor
from cvfs.cache.files import remove_leftovers
from cvfs.cache.ledger import KINDS, Changer, Ledger, Sums, boot_id
from cvfs.cache.pins import Pins
from cvfs.cache.space import Disk, Limits, Space
from cvfs.errors import CacheError, CacheFullError

_GIVE_WAY_PART = 8
"""Of the cache, at most, that gives way to others on the disk each time that `maintain` is called."""

_MOST_WRITES = 4
"""Of one file. What others fill faster than that is theirs: the file is served uncached, and the cache is not emptied
for it."""

_RECOUNT_S = 86400.0
_SAMPLED_SHARDS = 16
_TOLERATED_BYTES = 64 << 20


class Use(NamedTuple):
    """In bytes. Those that are used are None until they have been counted."""

    limit_bytes: int
    used_bytes: int | None
    metadata_bytes: int | None
    free_bytes: int
    keep_free_bytes: int

    @property
    def gives_way(self) -> bool:
        """Whether less is free on the disk than is left to others: the cache does not grow then, and shrinks where it
        has what may go."""
        return self.free_bytes < self.keep_free_bytes

    def shown(self) -> dict[str, int | None]:
        """All of it by name."""
        return {**self._asdict(), "gives_way": self.gives_way}

    @property
    def most_bytes(self) -> int:
        """What the cache could have at most, as its disk is now, if all that it has were evicted before."""
        if self.used_bytes is None:
            return self.limit_bytes
        return max(0, min(self.limit_bytes, self.used_bytes + self.free_bytes - self.keep_free_bytes))


class Reservation:
    """Space on `disk` for files that are about to be stored."""

    def __init__(self, disk: Disk, evictor: Evictor, size: int) -> None:
        self._disk, self._evictor = disk, evictor
        self.left = size
        """Bytes of the disk that are not filled yet."""

    def fill(self, size: int, write: Callable[[], None]) -> None:
        """Call `write`, which stores a file of `size` bytes; again, after evicting, where the disk turns out full.

        Others may be filling what was freed: so several times, as long as something could be evicted.

        Raises CacheError.
        """
        on_disk = self._disk.on_disk(size)
        for writes in range(1, _MOST_WRITES + 1):
            try:
                write()
                break
            except CacheFullError:
                if writes == _MOST_WRITES or not self._evictor.evict_to_store(HASTE * on_disk):
                    raise
        self.left -= on_disk


class Quota:
    """The limit of one cache directory. From any thread. `needed(of_metadata)` is what must not be evicted.

    All methods raise CacheError if the disk fails.
    """

    def __init__(self, directory: CacheDirectory, limits: Limits, needed: Callable[[bool], Collection[bytes]]) -> None:
        self._directory = directory
        self._disk = Disk(directory, limits)
        self.ledger = Ledger(directory)
        self.pins = Pins(directory)
        self.evictor = Evictor(directory, self.ledger, self.pins, needed)
        self._admission = Admission(directory, self._disk, self.ledger, self.evictor)

    @contextlib.contextmanager
    def reserve(self, data: Sequence[int] = (), metadata: Sequence[int] = ()) -> Iterator[Reservation]:
        """Space for files of these sizes, data or metadata; what is not filled in the context is given back.

        Raises CacheFullError: there is none, and nothing may be evicted that would change that.
        """
        on_disk = self._disk.on_disk
        size = sum(map(on_disk, data)), sum(map(on_disk, metadata))
        with contextlib.ExitStack() as storing:
            change = self._reserve(storing, *size)
            reservation = Reservation(self._disk, self.evictor, sum(size))
            try:
                yield reservation
            finally:
                left = reservation.left
                if left:
                    unused = (left, 0) if size[0] else (0, left)
                    change(lambda sums: sums.without(*unused))

    def use(self) -> Use:
        """What is used, and what may be."""
        space, sums = self._disk.space(), self.ledger.read()
        used, metadata = (sums.total, sums.metadata) if sums.is_known else (None, None)
        return Use(self._disk.limit_with(space, sums.total), used, metadata, space.free, space.keep_free)

    def on_disk(self, size: int) -> int:
        """What a file of `size` bytes takes of the limit."""
        return self._disk.on_disk(size)

    def status(self) -> dict[str, int | None]:
        """As `use`, for whoever asks a mount; nothing if the disk fails."""
        try:
            return {**self.use().shown(), "evicted_bytes": self.evictor.evicted_bytes}
        except CacheError:
            return {}

    def maintain(self) -> bool:
        """Count again if the sums are unknown, old or implausible; then evict what is too much. To be called now and
        then; soon again if it returns False, as nothing could be counted."""
        self.evictor.forget_dropped()
        sums = self.ledger.read()
        is_sure = self._is_plausible(sums)
        if not is_sure:
            counted = self.recount()
            sums, is_sure = counted or sums, counted is not None
        if sums.is_known:
            space = self._disk.space()
            lack = min(self._disk.lack(space, sums.total), sums.total // _GIVE_WAY_PART)
            self.evictor.evict(max(lack, sums.total - space.limit))
            self._bound_pages(space, sums.metadata)
        return is_sure

    def recount(self) -> Sums | None:
        """Count all files, which takes 3 us for each. None if another process does, or does not end storing."""
        from cvfs.cache.shards import count

        for kind in (".", *KINDS):
            remove_leftovers(os.fsencode(self._directory.path / kind))
        return self.ledger.recount(lambda: count(self._directory.path))

    def evict_to(self, size: int) -> int:
        """Evict data, and where that is not enough pages, until all takes `size` bytes; the bytes freed."""
        freed = self.evictor.evict(self.ledger.read().total - size)
        return freed + self.evictor.evict(self.ledger.read().total - size, of_metadata=True)

    def wipe(self) -> int:
        """Remove all that is stored; see `Evictor.wipe`."""
        return self.evictor.wipe()

    def _reserve(self, storing: contextlib.ExitStack, data: int, metadata: int) -> Changer:
        """Add to the sums what will be stored, once there is room. `storing` ends when it has been."""
        self.evictor.forget_dropped()
        if metadata:
            self._bound_pages(self._disk.space(), self.ledger.read().metadata + metadata)
        return self._admission.admit(storing, data, metadata)

    def _bound_pages(self, space: Space, metadata: int) -> None:
        """Have pages within their bound where they would be `metadata` bytes, as far as they are not needed."""
        bound = space.metadata_limit
        excess = metadata - bound
        if excess > 0:
            self.evictor.evict_to_store(excess + slack(bound), of_metadata=True)

    def _is_plausible(self, sums: Sums) -> bool:
        """Whether the sums can be believed: they are not old, and a sample of the files does not speak against it."""
        from cvfs.cache.shards import SHARDS, disk_bytes, list_shard

        if sums.boot != boot_id() or not 0 <= time.time() - sums.counted_s < _RECOUNT_S:
            return False
        numbers = random.sample(range(SHARDS), _SAMPLED_SHARDS)
        sampled = sum(disk_bytes(list_shard(self._directory.path, kind, each)) for kind in KINDS for each in numbers)
        estimate = sampled * SHARDS // _SAMPLED_SHARDS
        return abs(estimate - sums.total) <= max(estimate, sums.total) // 2 + _TOLERATED_BYTES
