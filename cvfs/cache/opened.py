"""Which objects users have open on the mounts of this host. Opening a file sends no message, so nobody has noted it:
the system is asked.

/proc says what each process has open and mapped, by inode number. Those of our mounts are in the inode index, which all
of them share, and those of other file systems are not; where one is by chance, something is kept that could have gone.
Containers are processes of the host like others. Processes that may not be looked at, those of other users unless one
is root, are left out; descriptors also before Linux 5.14, which does not tell their inodes. So is what the kernel alone
holds: the image of a loop device, a descriptor on its way through a socket.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from cvfs.cache.files import DigestFiles
from cvfs.cache.index import Place
from cvfs.cache.large import recipe_of
from cvfs.errors import CvfsError
from cvfs.format.blob import unseal
from cvfs.format.pages import Leaf, decode_page
from cvfs.model import BlobRef

log = logging.getLogger(__name__)

_SMALLEST: Final = 1 << 32
"""Inode numbers of ours are hashes of 64 bits: one in four thousand million is below this. Those of nearly all other
files are."""

_WAIT_S: Final = 1.0
"""For a look around; then the last one counts. To read of a process may wait for a lock that it holds, which it does
for ever where it waits for a dead file server. A hundred processes take 10 ms."""


class Open(NamedTuple):
    """A file that is open: how many bytes it has, holes aside, and the ids by which the cache has what it takes to read
    it."""

    size: int
    ids: Collection[bytes]


class OpenFiles:
    """What is open now. From any thread.

    `find` says where the record with an inode number stands, `open_at` what is there of a page's records by position.
    """

    def __init__(
        self,
        find: Callable[[int], Place | None],
        open_at: Callable[[BlobRef, Collection[int]], Mapping[int, Open]],
    ) -> None:
        self._find, self._open_at = find, open_at
        self._scanning = threading.Lock()
        self._known: dict[Place, Open] = {}
        self._begun = 0.0
        """When the last look began."""

    def ids(self, limit: int) -> set[bytes]:
        """The ids of all that must stay for the files to be read that are open when this is called. Not all of them can
        where they are larger than the `limit`, in bytes: then of the smallest."""
        asked = time.monotonic()
        # Nobody waits twice for one that hangs.
        is_late = self._scanning.locked() and asked > self._begun + _WAIT_S
        if not is_late and self._scanning.acquire(timeout=_WAIT_S):
            if self._begun >= asked:  # another thread has just looked
                self._scanning.release()
            else:
                self._scan_for(_WAIT_S)
        found: set[bytes] = set()
        for each in sorted(self._known.values(), key=lambda each: each.size):
            limit -= each.size
            if limit < 0:
                break
            found.update(each.ids)
        return found

    def _scan_for(self, wait_s: float) -> None:
        self._begun = time.monotonic()
        scan = threading.Thread(target=self._scan, name="open files", daemon=True)
        try:
            scan.start()
        except RuntimeError:  # there may be no thread more
            self._scanning.release()
        else:
            scan.join(wait_s)

    def _scan(self) -> None:
        try:
            self._known = self._look()
        except (CvfsError, OSError) as error:
            log.warning("cannot tell which files are open: %s", error)
        finally:
            self._scanning.release()

    def _look(self) -> dict[Place, Open]:
        """Leaf by leaf, each once. What was known of a place is not looked up again."""
        places = {place for place in map(self._find, set(_inodes())) if place is not None}
        known = {place: self._known[place] for place in places if place in self._known}
        news: dict[tuple[int, BlobRef], list[int]] = {}
        for place in places - known.keys():
            news.setdefault((place.repository, place.page), []).append(place.position)
        for (repository, page), positions in news.items():
            found = self._open_at(page, positions)
            known |= {Place(repository, page, position): each for position, each in found.items()}
        return known


def _inodes() -> Iterator[int]:
    """The inode numbers that may be ours of what any process has open or mapped."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            yield from _mapped(f"/proc/{pid}/maps")
            for fd in os.listdir(f"/proc/{pid}/fdinfo"):
                yield from _opened(f"/proc/{pid}/fdinfo/{fd}")


def _mapped(path: str) -> Iterator[int]:
    with open(path, "rb") as maps:
        for line in maps:
            inode = int(line.split(None, 5)[4])
            if inode >= _SMALLEST:
                yield inode


def _opened(path: str) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as info:  # closed meanwhile
        for line in info:
            if line.startswith(b"ino:"):
                inode = int(line[4:])
                if inode >= _SMALLEST:
                    yield inode
                return


def open_at(pages: DigestFiles, page: BlobRef, positions: Iterable[int]) -> dict[int, Open]:
    """What the records of a leaf at these positions take: the content by its own id, or that of its large file; the
    packs that small objects may still be in; the pages that say where the rest is. Nothing of what cannot be had.

    Raises CacheError: the disk failed.
    """
    stored = pages.load(page.id, page.stored_size)
    try:
        leaf = None if stored is None else decode_page(unseal(page, stored, "the cache"))
    except CvfsError:
        leaf = None
    return _open_in(leaf, positions) if isinstance(leaf, Leaf) else {}


def _open_in(leaf: Leaf, positions: Iterable[int]) -> dict[int, Open]:
    found = {}
    for position in positions:
        at = leaf.numbered(position)
        if at is not None:
            entry, content = leaf.groups[at[0]].entries[at[1]], leaf.content(*at)
            packs = {location.pack.id for location in content.locations}
            others = {page.id for _, page in content.location_pages}
            size = entry.size if others else sum(location.length for location in content.locations)
            found[position] = Open(size, {entry.content_id, recipe_of(entry, content), *packs, *others})
    return found
