"""Which objects users have open on the mounts of this host. Opening a file sends no message, so nobody has noted it:
the system is asked.

/proc says what each process has open and mapped, by inode number. Those of our mounts are in the inode index, which all
of them share, and those of other file systems are not; where one is by chance, something is kept that could have gone.
Containers are processes of the host like others. Processes that may not be looked at, those of other users unless one
is root, are left out; descriptors also before Linux 5.14, which does not tell their inodes.
"""

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from typing import Final

from cvfs.cache.files import DigestFiles
from cvfs.cache.index import Place
from cvfs.cache.large import recipe_of
from cvfs.errors import CvfsError
from cvfs.format.blob import unseal
from cvfs.format.pages import Leaf, decode_page

_SMALLEST: Final = 1 << 32
"""Inode numbers of ours are hashes of 64 bits: one in four thousand million is below this. Those of nearly all other
files are."""

_REST: Final = 10
"""A list is asked for anew once it is this times as old as it took to make: no more than a tenth of the time goes into
that, however many processes there are. A hundred processes take 10 ms."""

_NOTHING: Final[frozenset[bytes]] = frozenset()


class OpenFiles:
    """What is open now, or was a moment ago. From any thread.

    `find` says where the record with an inode number stands, and `ids_at` by which ids the cache has its content.
    """

    def __init__(self, find: Callable[[int], Place | None], ids_at: Callable[[Place], Collection[bytes]]) -> None:
        self._find, self._ids_at = find, ids_at
        self._known: dict[int, Collection[bytes]] = {}
        self._until = 0.0
        self._ids: Collection[bytes] = _NOTHING

    def ids(self) -> Collection[bytes]:
        """The ids of all that must stay for those files to be read. Raises CacheError: the disk failed."""
        start = time.monotonic()
        if start >= self._until:
            known = self._known
            # A number stands for the same content for ever, so what it was found to be is not looked up again.
            self._known = {each: known[each] if each in known else self._ids_of(each) for each in set(_inodes())}
            self._ids = frozenset().union(*self._known.values())
            now = time.monotonic()
            self._until = now + _REST * (now - start)
        return self._ids

    def _ids_of(self, inode: int) -> Collection[bytes]:
        place = self._find(inode)
        return _NOTHING if place is None else self._ids_at(place)


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


def ids_at(pages: DigestFiles, place: Place) -> Collection[bytes]:
    """The ids by which the cache has the content of a record: its own, or that of its large file; the packs that small
    objects may still be in; and the pages that say where the rest is. Nothing if the record cannot be had.

    Raises CacheError: the disk failed.
    """
    stored = pages.load(place.page.id, place.page.stored_size)
    try:
        leaf = None if stored is None else decode_page(unseal(place.page, stored, "the cache"))
        at = leaf.numbered(place.position) if isinstance(leaf, Leaf) else None
        if at is None or not isinstance(leaf, Leaf):
            return _NOTHING
        entry, content = leaf.groups[at[0]].entries[at[1]], leaf.content(*at)
    except CvfsError:
        return _NOTHING
    packs = {location.pack.id for location in content.locations}
    return {entry.content_id, recipe_of(entry, content), *packs, *(page.id for _, page in content.location_pages)}
