"""The file behind the one that was read last, ready before anyone asks for it.

Who copies a tree reads the files of a directory in their order. While such a reader is busy with what it was given, a
worker would only look for its next request; so it does the work of that request, and has nothing but the answer to give
when it comes.
"""

from typing import Final, NamedTuple

import msgspec

from cvfs.file import File
from cvfs.format.tree.lookup import Found
from cvfs.model import BlobRef
from cvfs.repository import Repository

_NEAR: Final = 8
"""Two files read one after the other are in order if so many lines of the listing lie between them at most: there are
directories, links and empty files among them, of which nothing is read."""

_MOST_BYTES: Final = 128 << 10
"""What the kernel asks for in one request, unless a larger size was agreed on."""


class _Place(msgspec.Struct, frozen=True, gc=False):
    """A file, and where its record stands: record `index` of group `number` of the leaf `page`."""

    inode: int
    page: BlobRef
    number: int
    index: int


class _Ready(NamedTuple):
    place: _Place
    data: bytes


class Following:
    """Of one revision. It holds on to no page and no pack: of what is ready there is a copy."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._last: _Place | None = None
        self._is_in_order = False
        """Whether the last file and the one before it were."""
        self._ready: _Ready | None = None

    def take(self, inode: int, offset: int, length: int) -> bytes | None:
        """All bytes of a file that is read, if they are ready."""
        ready, self._ready = self._ready, None
        if ready is None:
            return None
        if ready.place.inode != inode or offset or len(ready.data) > length:
            self._last = None  # a wrong guess: it takes two more files to make another
            return None
        self._last, self._is_in_order = ready.place, True
        return ready.data

    def note(self, inode: int, found: Found) -> None:
        """A file is read, in one request."""
        last, place = self._last, _Place(inode, found.page, found.number, found.index)
        self._last = place
        self._is_in_order = (
            last is not None
            and last.page == place.page
            and last.number == place.number
            and last.index < place.index <= last.index + _NEAR
        )

    def make_ready(self, inode: int) -> None:
        """A file was read: if that is done in order, do what the next request will need, for 20 us or so.

        Raises what reading the next file does; what cannot be had now is left to who asks for it.
        """
        last = self._last
        if self._is_in_order and self._ready is None and last is not None and last.inode == inode:
            self._is_in_order = False
            self._ready = self._behind(last)

    def _behind(self, last: _Place) -> _Ready | None:
        """The next file of the directory that has any bytes, if they are few, and in memory or the cache."""
        leaf = self._repository.leaf_nowait(last.page)
        entries = leaf.groups[last.number].entries
        for index in range(last.index + 1, min(last.index + _NEAR + 1, len(entries))):
            entry = entries[index]
            if entry.is_regular and entry.size:
                found = Found(last.page, leaf, last.number, index)
                return self._read(found) if entry.size <= _MOST_BYTES else None
        return None

    def _read(self, found: Found) -> _Ready | None:
        parts = File(found, self._repository.fetcher).read_parts_nowait(0, found.entry.size)
        if parts is None:
            return None
        inode = self._repository.inode_of(found)
        return _Ready(_Place(inode, found.page, found.number, found.index), b"".join(parts))
