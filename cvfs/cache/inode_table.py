"""A hash table of inode numbers in one shared memory map: 16 bytes a slot, linear probing, nothing is ever removed.

Why not LMDB, which is the obvious choice: inode numbers are hashes, so each page of metadata that is taken in puts a
thousand keys in a thousand random places, and a copy-on-write tree rewrites a page for each. A million entries cost
4 GB of writes there and 57 MB resident; here 32 MB of writes, and the map can be dropped from memory at any time
(docs/decisions/0002-inode-index.md).
"""

import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

_HEADER = struct.Struct("=8sQQQQ")
_HEADER_BYTES = 4096
_MAGIC = b"cvfs-ino"
_SLOT = struct.Struct("=QIHH")
_COUNT_AT = 16
_MOVED_AT = 24
_CONTESTED_AT = 32
_U64 = struct.Struct("=Q")
_TRIM_EVERY = 1 << 13


class Slot(NamedTuple):
    """One number: the record at `position` of page number `page`. `check` are 16 more bits of the hash."""

    number: int
    page: int
    position: int
    check: int


class Full(Exception):
    """The table should be grown before more is put into it."""


class InodeTable:
    """A table over a map of its own bytes. One writer at a time; any number of readers, in any process.

    Raises ValueError if the bytes are none.
    """

    def __init__(self, buffer: mmap.mmap) -> None:
        self._map = buffer
        self.capacity = _capacity_of(buffer)
        self._mask = self.capacity - 1

    @property
    def count(self) -> int:
        return int(_U64.unpack_from(self._map, _COUNT_AT)[0])

    @property
    def moved(self) -> bool:
        """Whether a larger table has taken the place of this one."""
        return bool(_U64.unpack_from(self._map, _MOVED_AT)[0])

    @property
    def contested(self) -> bool:
        """Whether any two identities ever met at one number."""
        return bool(_U64.unpack_from(self._map, _CONTESTED_AT)[0])

    def mark_contested(self) -> None:
        _U64.pack_into(self._map, _CONTESTED_AT, 1)

    def find(self, number: int) -> Slot | None:
        """The slot of `number`, None if it was never put."""
        unpack, buffer, mask = _SLOT.unpack_from, self._map, self._mask
        first = number & mask
        # A table that was written as it should be has free slots, but this one may have been damaged.
        for place in range(first, first + self.capacity):
            found, page, position, check = unpack(buffer, _HEADER_BYTES + (place & mask) * 16)
            if not page:
                return None
            if found == number:
                return Slot(number, page - 1, position, check)
        return None

    def put(
        self, number: int, page: int, position: int, check: int, may_replace: Callable[[int], bool] = lambda page: True
    ) -> bool:
        """Put a slot there, in place of an older one with its number and check, if `may_replace` that one's page.

        False if the number is there with another check, or page: then nothing was put. Raises Full.
        """
        unpack, buffer, mask = _SLOT.unpack_from, self._map, self._mask
        first = number & mask
        for place in range(first, first + self.capacity):
            offset = _HEADER_BYTES + (place & mask) * 16
            found, taken, _, other = unpack(buffer, offset)
            if not taken:
                self._count_one()
            elif found != number:
                continue
            elif other != check or (taken != page + 1 and not may_replace(taken - 1)):
                return False
            _SLOT.pack_into(buffer, offset, number, page + 1, position, check)
            return True
        raise Full

    def put_all(self, page: int, identities: Sequence[tuple[int, int]]) -> list[int]:
        """Put the records of a page, (number, check) of each in its order, where their numbers are free.

        The positions of those whose numbers are taken: `put` knows what to do with them. Raises Full: all are to be
        put again, into a larger table.
        """
        self._check_room(len(identities))
        unpack, pack, buffer, mask = _SLOT.unpack_from, _SLOT.pack_into, self._map, self._mask
        taken = []
        for position, (number, check) in enumerate(identities):
            for place in range(number, number + self.capacity):
                offset = _HEADER_BYTES + (place & mask) * 16
                found, used, _, _ = unpack(buffer, offset)
                if not used:
                    pack(buffer, offset, number, page + 1, position, check)
                    break
                if found == number:
                    taken.append(position)
                    break
            else:
                raise Full
        _U64.pack_into(buffer, _COUNT_AT, self.count + len(identities) - len(taken))
        return taken

    def slots(self) -> Iterator[Slot]:
        """All slots that are taken."""
        return (Slot(number, page - 1, position, check) for number, page, position, check in self._taken())

    def _taken(self) -> Iterator[tuple[int, int, int, int]]:
        end = size_of(self.capacity)
        return filter(itemgetter(1), _SLOT.iter_unpack(memoryview(self._map)[_HEADER_BYTES:end]))

    def take_over(self, old: "InodeTable") -> None:
        """Put what `old` holds into this table, which is empty and larger.

        Lets go of memory on the way: both together are most of what a client uses.
        """
        unpack, pack, buffer, mask = _SLOT.unpack_from, _SLOT.pack_into, self._map, self._mask
        count = 0
        for count, (number, page, position, check) in enumerate(old._taken(), 1):
            place = number & mask
            while unpack(buffer, _HEADER_BYTES + place * 16)[1]:
                place = place + 1 & mask
            pack(buffer, _HEADER_BYTES + place * 16, number, page, position, check)
            if not count % _TRIM_EVERY:
                old.trim()
                self.trim()
        _U64.pack_into(buffer, _COUNT_AT, count)
        if old.contested:
            self.mark_contested()

    def copy(self) -> "InodeTable":
        """The same in memory that no other process sees."""
        buffer = mmap.mmap(-1, len(self._map))
        buffer.write(memoryview(self._map))
        _U64.pack_into(buffer, _MOVED_AT, 0)
        return InodeTable(buffer)

    def mark_moved(self) -> None:
        _U64.pack_into(self._map, _MOVED_AT, 1)

    def trim(self) -> None:
        """Let go of the memory: the kernel still has the bytes, in its page cache (all maps here are shared ones)."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def _count_one(self) -> None:
        self._check_room(1)
        _U64.pack_into(self._map, _COUNT_AT, self.count + 1)

    def _check_room(self, more: int) -> None:
        if self.count + more > self.capacity * 5 // 8:  # so a search soon meets a free slot
            raise Full


def size_of(capacity: int) -> int:
    """The bytes of a table of `capacity` slots."""
    return _HEADER_BYTES + capacity * _SLOT.size


def in_memory(capacity: int) -> InodeTable:
    """A new table that no other process sees."""
    return _format(mmap.mmap(-1, size_of(capacity)), capacity)


def in_file(fd: int, capacity: int) -> InodeTable:
    """A new table in the empty file `fd`. Its space is reserved, so that writing to the map cannot fail later.

    Raises OSError: no space.
    """
    os.posix_fallocate(fd, 0, size_of(capacity))
    return _format(mmap.mmap(fd, size_of(capacity)), capacity)


def open_file(fd: int) -> InodeTable:
    """The table in the file `fd`. Raises ValueError if it is none, OSError if it cannot be mapped."""
    return InodeTable(mmap.mmap(fd, 0))


def _format(buffer: mmap.mmap, capacity: int) -> InodeTable:
    _HEADER.pack_into(buffer, 0, _MAGIC, capacity, 0, 0, 0)
    return InodeTable(buffer)


def _capacity_of(buffer: mmap.mmap) -> int:
    """What the header says, if all of it is there: touching a map beyond the end of its file would kill the process."""
    if len(buffer) < _HEADER_BYTES:
        raise ValueError("too short for an inode table")
    magic, capacity, *_ = _HEADER.unpack_from(buffer)
    if magic != _MAGIC or capacity.bit_count() != 1 or len(buffer) < size_of(capacity):
        raise ValueError("not an inode table")
    return int(capacity)
