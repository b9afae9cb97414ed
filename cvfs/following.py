"""The file behind the one that was read last, ready before anyone asks for it.

Who copies a tree reads the files of a directory in their order. While such a reader is busy with what it was given, a
worker would only look for its next request; so it does the work of that request, and has nothing but the answer to give
when it comes.
"""

from typing import Final, NamedTuple

from cvfs.file import File
from cvfs.format.tree.lookup import Found
from cvfs.repository import Repository
from cvfs.seen import Where

_NEAR: Final = 8
"""Two files read one after the other are in order if so many lines of the listing lie between them at most: there are
directories, links and empty files among them, of which nothing is read."""

_MOST_BYTES: Final = 128 << 10
"""What the kernel asks for in one request, unless a larger size was agreed on."""


class _Ready(NamedTuple):
    inode: int
    where: Where
    data: bytes


class Following:
    """Of one revision. It holds on to no page and no pack: of what is ready there is a copy."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._inode = 0
        self._last: Where | None = None
        """The file that was read last, and where its record stands."""
        self._is_in_order = False
        """Whether the last file and the one before it were."""
        self._ready: _Ready | None = None

    def take(self, inode: int, offset: int, length: int) -> bytes | None:
        """All bytes of a file that is read, if they are ready."""
        ready, self._ready = self._ready, None
        if ready is None:
            return None
        if ready.inode != inode or offset or len(ready.data) > length:
            self._last = None  # a wrong guess: it takes two more files to make another
            return None
        self._inode, self._last, self._is_in_order = inode, ready.where, True
        return ready.data

    def note(self, inode: int, found: Found) -> None:
        """A file is read, in one request."""
        last, where = self._last, _where(found)
        self._inode, self._last = inode, where
        self._is_in_order = (
            last is not None
            and last.page == where.page
            and last.number == where.number
            and last.index < where.index <= last.index + _NEAR
        )

    def make_ready(self, inode: int) -> None:
        """A file was read: if that is done in order, do what the next request will need, for 20 us or so.

        Raises what reading the next file does; what cannot be had now is left to who asks for it.
        """
        if self._is_in_order and self._last is not None and self._inode == inode:
            self._is_in_order = False
            self._ready = self._behind(self._last)

    def _behind(self, last: Where) -> _Ready | None:
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
        return _Ready(self._repository.inode_of(found), _where(found), b"".join(parts))


def _where(found: Found) -> Where:
    return Where(found.page, found.number, found.index)
