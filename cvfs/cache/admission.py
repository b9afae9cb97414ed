"""Who may store: what is wanted is added to the sums once there is room, which is made by evicting.

Many processes reserve and evict at once. That one of them finds nothing to evict means little: others have reserved
what they have not stored yet, are evicting the same files, or read them at this moment; and the sums may be too high.
So "no room" is only said where nobody else stores, after a search and a count that nothing disturbs. Whoever waits for
that is in a thread of its own: the reader has its bytes already.
"""

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cvfs.cache.directory import CacheDirectory
from cvfs.cache.evictor import PAUSE, Evictor
from cvfs.cache.ledger import Changer, Ledger, Sums, recounted
from cvfs.cache.space import Disk
from cvfs.errors import CacheFullError

if TYPE_CHECKING:
    from cvfs.cache.eviction import Evicted

HASTE = 4
"""While the disk lacks free space, this times what is stored is evicted."""

_SLACK_PART = 64
_MAX_SLACK_BYTES = 64 << 20

_MOST_STEPS = 8
"""So many times what is usual is evicted, at most, so that it need not soon be found out again what users have open."""

_ROUNDS = 4
"""So often others may take the room that was made, before it is made where nobody else stores."""

_OPEN_S = 1.0
"""For so long, while nobody else can store, files are waited for that somebody has open: reading one takes less than a
millisecond, unless the machine is overloaded."""

_POLL_S = 0.002

_REST = 50
"""After it was found that there is no room, this times what that took none is looked for: where all is pinned, open or
needed, so much smaller than all work is the part that looks for room in vain."""

_REST_OPEN = 4
"""The same where it was waited for files that are open, which they may not be any more."""


class _Want(NamedTuple):
    """What shall be stored, and what has to be evicted for it because the disk lacks space."""

    data: int
    metadata: int
    disk_lack: int

    @property
    def size(self) -> int:
        return self.data + self.metadata


class Admission:
    """Of one cache directory. From any thread."""

    def __init__(self, directory: CacheDirectory, disk: Disk, ledger: Ledger, evictor: Evictor) -> None:
        self._path, self._disk, self._ledger, self._evictor = directory.path, disk, ledger, evictor
        self._resting_until = 0.0
        self._searched_s = 0.0
        """When the last search ended."""

    def admit(self, storing: contextlib.ExitStack, data: int, metadata: int) -> Changer:
        """Add these bytes to the sums once there is room. `storing` is to be closed when they are stored; what is
        returned changes the sums until then. Blocks: for seconds where others store and evict as well.

        Raises CacheFullError: there is no room, and nothing may be evicted that would change that; CacheError.
        """
        space, total = self._disk.space(), self._ledger.read().total
        disk_lack = self._disk.lack(space, total, data + metadata)
        want = _Want(data, metadata, min(disk_lack, HASTE * (data + metadata)))
        freed = 0
        for _ in range(_ROUNDS):
            change = storing.enter_context(self._ledger.storing())
            sums, lack = _take(change, want, space.limit, freed)
            if lack <= 0:
                return change
            storing.close()
            if want.size > space.limit or time.monotonic() < self._resting_until:
                raise self._full(want)
            found = self._search(lack, sums.total)
            freed += found.freed
            if not found.freed:
                break
        return storing.enter_context(self._ledger.storing_after(partial(self._decide, want, freed)))

    def _decide(self, want: _Want, freed: int, change: Changer) -> None:
        """Take what is wanted where nobody else stores. Raises CacheFullError: there is no room."""
        start, is_counted = time.monotonic(), False
        keep = self._evictor.keep()
        while True:
            sums, lack = self._take_now(change, want, freed)
            if lack <= 0:
                return
            found = self._evictor.search(lack + slack(sums.total), keep, change=change)
            freed += found.freed
            if found.freed:
                continue
            is_hopeless = not found.in_use or time.monotonic() - start > _OPEN_S
            if is_hopeless or not is_counted:
                self._count(change)
                is_counted = True
                if self._take_now(change, want, freed)[1] <= 0:
                    return
            if is_hopeless:
                end = time.monotonic()
                self._resting_until = end + (end - start) * (_REST_OPEN if found.in_use else _REST)
                raise self._full(want)
            time.sleep(_POLL_S)

    def _search(self, lack: int, total: int) -> "Evicted":
        """Evict what is lacking of a cache of `total` bytes, and some more: the more, the sooner after the last search
        for how long that had looked around."""
        pause_s = max(time.monotonic() - self._searched_s, 1e-3)
        steps = min(max(PAUSE * self._evictor.looking_s / pause_s, 1.0), _MOST_STEPS)
        try:
            return self._evictor.search(lack + round(steps * slack(total)))
        finally:
            self._searched_s = time.monotonic()

    def _take_now(self, change: Changer, want: _Want, freed: int) -> tuple[Sums, int]:
        """As `_take`, of the disk as it is now: others have made room as well."""
        space, total = self._disk.space(), self._ledger.read().total
        disk_lack = self._disk.lack(space, total, want.size)
        return _take(change, want._replace(disk_lack=min(want.disk_lack, disk_lack + freed)), space.limit, freed)

    def _count(self, change: Changer) -> None:
        from cvfs.cache.shards import count

        before = change(lambda sums: sums)
        data, metadata = count(self._path)
        change(lambda now: recounted(before, now, data, metadata))

    def _full(self, want: _Want) -> CacheFullError:
        return CacheFullError(f"no room for {want.size} bytes more in the cache {self._path}")


def slack(size: int) -> int:
    """What to evict beyond what is needed of a cache of `size` bytes, so as not to do it again for each pack."""
    return min(size // _SLACK_PART, _MAX_SLACK_BYTES)


def _take(change: Changer, want: _Want, limit: int, freed: int) -> tuple[Sums, int]:
    """The sums, with what is wanted if there is room for it; and how much has to be evicted else."""
    lack = 0

    def take(sums: Sums) -> Sums:
        nonlocal lack
        # What was not counted is taken to be at its limit: as much goes as comes.
        over = sums.total + want.size - limit if sums.is_known else want.size - freed
        lack = max(over, want.disk_lack - freed)
        return sums if lack > 0 else sums.plus(want.data, want.metadata)

    return change(take), lack
