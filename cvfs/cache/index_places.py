"""Where the parts of the inode index are: on the disk, in the host's memory, in that of this process."""

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from cvfs.cache import index_files
from cvfs.cache.index_files import FIRST_CAPACITY, IndexFiles
from cvfs.cache.index_part import Part
from cvfs.cache.inode_table import size_of
from cvfs.errors import CacheError

log = logging.getLogger(__name__)

T = TypeVar("T")

_REST_S = 10.0
"""For how long a place that has failed is not written to."""

_DISK, _OWN = 0, 2
_NAMES = ("on disk", "in the memory of the host", "in memory")
_FIRST_BYTES = size_of(FIRST_CAPACITY)


class Places:
    """Those of one cache directory, numbered, the best first; each has one part at most. `evict(size)` makes space on
    the disk, if it can. From any thread."""

    def __init__(self, cache: Path, evict: Callable[[int], object]) -> None:
        self._cache, self._evict = cache, evict
        self._roots = index_files.disk_root(cache), index_files.memory_root(cache)
        self._openers = index_files.open_on_disk, index_files.open_in_memory
        self._lock = threading.Lock()
        self._held: list[Part | None] = [None, None, None]
        self._resting_until = [0.0, 0.0, 0.0]
        self.parts: tuple[Part, ...] = ()
        """Those that are open, in order."""

    def usable(self) -> Iterator[tuple[int, Part]]:
        """What may be written to now: opened, or made, unless it rests. The last one never lacks space."""
        for place, opener in enumerate(self._openers):
            if time.monotonic() >= self._resting_until[place]:
                part = self._held[place] or self._open(place, opener)
                if part is not None:
                    yield place, part
        yield _OWN, self._held[_OWN] or self._hold(_OWN, Part(None))

    def open_those_there(self) -> bool:
        """Open what another process has made meanwhile, without waiting for any; whether there was something."""
        opened = False
        for place, root in enumerate(self._roots):
            with contextlib.suppress(OSError, ValueError):
                if self._held[place] is None and os.path.isdir(root):
                    files = IndexFiles(root)
                    table = files.newest_table()
                    if table is None:
                        files.close()
                    else:
                        self._hold(place, Part(files, table))
                        opened = True
        return opened

    def with_space(self, place: int, size: int, work: Callable[[], T]) -> T | None:
        """What `work` gives; if there is no space for it, once more after evicting `size` bytes. None if that is of no
        use: the place rests."""
        try:
            try:
                return work()
            except OSError as error:
                if place != _DISK or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            with contextlib.suppress(CacheError):
                self._evict(size)
            return work()
        except (OSError, ValueError) as error:
            if not self._resting_until[place]:
                log.warning("the inode index cannot be kept %s (%s): it is kept in memory", _NAMES[place], error)
            self._resting_until[place] = time.monotonic() + _REST_S
            return None

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def _open(self, place: int, opener: Callable[[Path], IndexFiles]) -> Part | None:
        def opened() -> Part:
            files = opener(self._cache)
            try:
                return Part(files, files.first_table())
            except (OSError, ValueError):
                files.close()
                raise

        part = self.with_space(place, _FIRST_BYTES, opened)
        return part and self._hold(place, part)

    def _hold(self, place: int, part: Part) -> Part:
        """Use a part from now on, unless another thread has opened it as well: then that one's."""
        with self._lock:
            held = self._held[place]
            if held is not None:
                part.close()
                return held
            self._held[place] = part
            self.parts = tuple(each for each in self._held if each is not None)
            return part
