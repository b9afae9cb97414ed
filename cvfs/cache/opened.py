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

_STUCK_S: Final = 1.0
"""To read of one process may wait for a lock that it holds, which it does for ever where it waits for a dead file
server. After so long it is left out; what was known to be open before is then kept as well."""

_WAIT_S: Final = 10.0
"""For all of them: 17 ms for 116."""


class OpenFile(NamedTuple):
    """A file that is open: how many bytes it has, without holes unless its chunks are very many, and the ids by which
    the cache has what it takes to read it."""

    size: int
    ids: Collection[bytes]


class _Look:
    """One look at all processes, in a thread of its own, and how far it has come."""

    def __init__(self) -> None:
        self.begun = self.progressed = time.monotonic()
        self.process = ""
        """That is looked at; none while it is looked up what the inode numbers mean."""
        self.done = threading.Event()

    def at(self, process: str) -> None:
        self.process, self.progressed = process, time.monotonic()


class OpenFiles:
    """What is open now. From any thread.

    `find` says where the record with an inode number stands, `open_at` what is there of a page's records by position.
    """

    def __init__(
        self,
        find: Callable[[int], Place | None],
        open_at: Callable[[BlobRef, Collection[int]], Mapping[int, OpenFile]],
    ) -> None:
        self._find, self._open_at = find, open_at
        self._starting = threading.Lock()
        self._last: _Look | None = None
        self._stuck: dict[str, _Look] = {}
        """Processes of which nothing could be read in time, and who still tries to."""
        self._known: dict[Place, OpenFile] = {}

    def ids(self, limit: int) -> set[bytes]:
        """The ids of all that must stay for the files to be read that are open when this is called. Not all of them can
        where they are larger than the `limit`, in bytes: then of the smallest."""
        asked = time.monotonic()
        while time.monotonic() < asked + _WAIT_S:
            look = self._look_for(asked)
            if look is None or (look.done.wait(_STUCK_S) and look.begun >= asked):
                break
        found: set[bytes] = set()
        for each in sorted(self._known.values(), key=lambda each: each.size):
            if not found.issuperset(each.ids):
                limit -= each.size
            if limit < 0:
                break
            found.update(each.ids)
        return found

    def _look_for(self, asked: float) -> _Look | None:
        """The look that is under way, or one that begins: if the last one began before `asked`, or is stuck. None if
        there is none to be waited for."""
        with self._starting:
            look = self._last
            if look is not None and not look.done.is_set() and time.monotonic() > look.progressed + _STUCK_S:
                if not look.process:  # it is the disk that does not answer
                    return None
                log.warning("cannot tell what process %s has open: it does not answer", look.process)
                self._stuck[look.process] = look
                look = None
            if look is None or (look.done.is_set() and look.begun < asked):
                look = self._last = _Look()
                try:
                    threading.Thread(target=self._scan, args=[look], name="open files", daemon=True).start()
                except RuntimeError:
                    self._last = None
                    return None
            return look

    def _scan(self, look: _Look) -> None:
        try:
            left_out = set(self._stuck)
            known = self._look(look)
            if look is self._last:
                self._known = self._known | known if left_out else known
        except (CvfsError, OSError) as error:
            log.warning("cannot tell which files are open: %s", error)
        finally:
            look.done.set()
            for process in [process for process, other in list(self._stuck.items()) if other is look]:
                self._stuck.pop(process, None)

    def _look(self, look: _Look) -> dict[Place, OpenFile]:
        """Leaf by leaf, each once. What was known of a place is not looked up again."""
        inodes = set(self._inodes(look))
        look.at("")
        places = {place for place in map(self._find, inodes) if place is not None}
        known = {place: self._known[place] for place in places if place in self._known}
        news: dict[tuple[int, BlobRef], list[int]] = {}
        for place in places - known.keys():
            news.setdefault((place.repository, place.page), []).append(place.position)
        for (repository, page), positions in news.items():
            look.at("")
            found = self._open_at(page, positions)
            known |= {Place(repository, page, position): each for position, each in found.items()}
        return known

    def _inodes(self, look: _Look) -> Iterator[int]:
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            if pid not in self._stuck:
                look.at(pid)
                yield from _inodes_of(pid)


def _inodes_of(pid: str) -> Iterator[int]:
    """The inode numbers that may be ours of what a process has open or mapped."""
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


def open_at(pages: DigestFiles, page: BlobRef, positions: Iterable[int]) -> dict[int, OpenFile]:
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


def _open_in(leaf: Leaf, positions: Iterable[int]) -> dict[int, OpenFile]:
    found = {}
    for position in positions:
        at = leaf.numbered(position)
        if at is not None:
            entry, content = leaf.groups[at[0]].entries[at[1]], leaf.content(*at)
            packs = {location.pack.id for location in content.locations}
            others = {page.id for _, page in content.location_pages}
            size = entry.size if others else sum(location.length for location in content.locations)
            found[position] = OpenFile(size, {entry.content_id, recipe_of(entry, content), *packs, *others})
    return found
