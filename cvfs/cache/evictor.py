"""Makes room: has files evicted, and takes them off the ledger."""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING

from cvfs.cache.directory import CacheDirectory
from cvfs.cache.leases import Leases
from cvfs.cache.ledger import Changer, Ledger, Sums
from cvfs.cache.pins import Pins

if TYPE_CHECKING:
    from cvfs.cache.eviction import Evicted, Keep

_REST = 50
"""After a search that found nothing, this times its duration none is made for what is to be stored, where that can do
without: so much smaller than all work is the part that looks for room in vain."""

PAUSE = 10
"""Before it is found out once more in a search what users have open, this times what it took is let go by: no more than
a tenth of the time goes into that, however many processes there are."""


class Evictor:
    """Of one cache directory. From any thread. Beside what is pinned, `needed(of_metadata)` must not be evicted: pages,
    or content.

    All methods but `note_dropped` raise CacheError: the disk fails.
    """

    def __init__(
        self, directory: CacheDirectory, ledger: Ledger, pins: Pins, needed: Callable[[bool], Collection[bytes]]
    ) -> None:
        self._path, self._ledger, self._pins, self._needed = directory.path, ledger, pins, needed
        self._leases = Leases(directory.path)
        self._resting_until = {False: 0.0, True: 0.0}
        self._dropped: deque[tuple[int, int, bool]] = deque()
        self.evicted_bytes = 0
        """Since the start, by this process."""
        self.looking_s = 0.0
        """How long it took the last time to find out what is needed: as long for a small step as for a large one."""

    def evict(self, size: int, *, of_metadata: bool = False) -> int:
        """Evict `size` bytes of data, or of pages, or what there is; the bytes freed."""
        return self.search(size, of_metadata=of_metadata).freed if size > 0 else 0

    def search(
        self, size: int, keep: "Keep | None" = None, *, of_metadata: bool = False, change: Changer | None = None
    ) -> "Evicted":
        """As `evict`; what was found. `keep` is for who searches several times in a row, `change` for who has locked
        the ledger (`Ledger.storing_after`)."""
        from cvfs.cache.eviction import evict
        from cvfs.cache.shards import DATA, METADATA

        kinds = METADATA if of_metadata else DATA
        steps = evict(self._path, kinds, size, keep or self.keep(of_metadata=of_metadata), self._leases)
        return self._take_off(steps, change or self._ledger.change, of_metadata=of_metadata)

    def evict_to_store(self, size: int, *, of_metadata: bool = False) -> int:
        """As `evict`, for whoever is about to store; 0 soon after nothing was found."""
        start = time.monotonic()
        if size <= 0 or start < self._resting_until[of_metadata]:
            return 0
        freed = self.evict(size, of_metadata=of_metadata)
        if not freed:
            end = time.monotonic()
            self._resting_until[of_metadata] = end + _REST * (end - start)
        return freed

    def wipe(self) -> int:
        """Remove all that is stored, also what is pinned, needed or open; the bytes freed. What is open still takes
        space: it stays in the sums until the next recount."""
        from cvfs.cache.eviction import remove_all
        from cvfs.cache.shards import DATA, METADATA

        change = self._ledger.change
        data = self._take_off(remove_all(self._path, DATA, self._leases), change, of_metadata=False)
        pages = self._take_off(remove_all(self._path, METADATA, self._leases), change, of_metadata=True)
        return data.freed + pages.freed

    def note_dropped(self, size: int, *, of_metadata: bool) -> None:
        """A damaged file was removed, by a reader who has no time: it is taken off the sums by `forget_dropped`."""
        self._dropped.append((self._ledger.read().counts, size, of_metadata))

    def forget_dropped(self) -> None:
        while self._dropped:
            counts, size, of_metadata = self._dropped.popleft()
            self._ledger.change(partial(_without, counts, size, of_metadata))

    def _take_off(self, steps: "Iterable[Evicted]", change: Changer, *, of_metadata: bool) -> "Evicted":
        """Take each step off the sums, unless they were counted anew since the one before; all that was found."""
        from cvfs.cache.eviction import all_evicted

        counts, found = self._ledger.read().counts, []
        for step in steps:
            found.append(step)
            counts = change(partial(_without, counts, step.freed, of_metadata)).counts
        total = all_evicted(found)
        self.evicted_bytes += total.freed
        return total

    def keep(self, *, of_metadata: bool = False) -> "Keep":
        """What must stay. What is needed is found out when it is first asked for, and once more now and then where that
        goes on for long."""
        needed: Collection[bytes] = ()
        until = 0.0

        def kept(number: int) -> Collection[bytes]:
            nonlocal needed, until
            start = time.monotonic()
            if start >= until:
                needed = self._needed(of_metadata)
                end = time.monotonic()
                self.looking_s = end - start
                until = end + PAUSE * self.looking_s
            return self._pins.of_shard(number).union(needed)

        return kept


def _without(counts: int, size: int, of_metadata: bool, sums: Sums) -> Sums:
    if sums.counts != counts:
        return sums
    return sums.minus(0, size) if of_metadata else sums.minus(size, 0)
