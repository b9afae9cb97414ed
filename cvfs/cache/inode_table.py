"""A hash table of inode numbers in one shared memory map: 16 bytes a slot, linear probing, nothing is ever removed.

A publisher can make files whose inode numbers are whatever it likes. So where a number's slot is depends on a secret,
too: without it one could make all of a million numbers meet at one slot, and each search a walk past all others.

Why not LMDB, which is the obvious choice: inode numbers are hashes, so each page of metadata that is taken in puts a
thousand keys in a thousand random places, and a copy-on-write tree rewrites a page for each. A million entries cost
4 GB of writes there and 57 MB resident; here 32 MB of writes, and the map can be dropped from memory at any time
(docs/decisions/0002-inode-index.md).
"""

import contextlib
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

_HEADER = struct.Struct("=8sQQQQQ")
_HEADER_BYTES = 4096
_MAGIC = b"cvfs-in2"
_OLD_MAGIC = b"cvfs-ino"
"""Of a table without a secret, which a client has left that was upgraded since the machine was started."""

_SLOT = struct.Struct("=QIHH")
_COUNT_AT = 16
_MOVED_AT = 24
_CONTESTED_AT = 32
_U64 = struct.Struct("=Q")
_TRIM_EVERY = 1 << 13
_PROBES = 1024
"""At most so many slots are looked at for one number. Of ten million numbers the longest walk is near 200."""


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
        self.capacity, self.secret = _read_header(buffer)
        self._mask = self.capacity - 1
        self._multiplier = self.secret or 1
        self._shift = 64 - self._mask.bit_length() if self.secret else 0
        self._probes = min(self.capacity, _PROBES)

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
        place = number * self._multiplier >> self._shift & mask
        # A table that was written as it should be has free slots, but this one may have been damaged.
        left = self._probes
        while left:
            found, page, position, check = unpack(buffer, _HEADER_BYTES + place * 16)
            if not page:
                return None
            if found == number:
                return Slot(number, page - 1, position, check)
            place = place + 1 & mask
            left -= 1
        return None

    def put(
        self, number: int, page: int, position: int, check: int, may_replace: Callable[[int], bool] = lambda page: True
    ) -> bool:
        """Put a slot there, in place of an older one with its number and check, if `may_replace` that one's page.

        False if the number is there with another check, or page: then nothing was put. Raises Full.
        """
        unpack, buffer, mask = _SLOT.unpack_from, self._map, self._mask
        first = self._first(number)
        for place in range(first, first + self._probes):
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
        self.check_room(len(identities))
        unpack, pack, buffer, mask = _SLOT.unpack_from, _SLOT.pack_into, self._map, self._mask
        multiplier, shift, probes = self._multiplier, self._shift, self._probes
        taken = []
        for position, (number, check) in enumerate(identities):
            first = number * multiplier >> shift & mask
            for place in range(first, first + probes):
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

    def _first(self, number: int) -> int:
        """Where a search begins. Those that are called most say it themselves."""
        return number * self._multiplier >> self._shift & self._mask

    def _taken(self) -> Iterator[tuple[int, int, int, int]]:
        end = size_of(self.capacity)
        return filter(itemgetter(1), _SLOT.iter_unpack(memoryview(self._map)[_HEADER_BYTES:end]))

    def take_over(self, old: "InodeTable") -> None:
        """Put what `old` holds into this table, which is empty and larger.

        Lets go of memory on the way: both together are most of what a client uses.
        """
        unpack, pack, buffer, mask = _SLOT.unpack_from, _SLOT.pack_into, self._map, self._mask
        multiplier, shift = self._multiplier, self._shift
        count = 0
        for count, (number, page, position, check) in enumerate(old._taken(), 1):
            first = number * multiplier >> shift & mask
            for place in range(first, first + self._probes):  # no more: of garbage some is left out
                offset = _HEADER_BYTES + (place & mask) * 16
                if not unpack(buffer, offset)[1]:
                    pack(buffer, offset, number, page, position, check)
                    break
            if not count % _TRIM_EVERY:
                old.trim()
                self.trim()
        _U64.pack_into(buffer, _COUNT_AT, count)
        if old.contested:
            self.mark_contested()

    def close(self) -> None:
        """Let go of the map, which keeps the disk busy. Nobody may use the table any more."""
        with contextlib.suppress(BufferError):  # who still does, in a thread that nobody waits for, goes on
            self._map.close()

    def mark_moved(self) -> None:
        _U64.pack_into(self._map, _MOVED_AT, 1)

    def trim(self) -> None:
        """Let go of the memory: the kernel still has the bytes, in its page cache (all maps here are shared ones)."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def _count_one(self) -> None:
        self.check_room(1)
        _U64.pack_into(self._map, _COUNT_AT, self.count + 1)

    def check_room(self, more: int) -> None:
        """Raise Full if the table should be grown before so many are put into it."""
        if self.count + more > self.capacity * 5 // 8:  # so a search soon meets a free slot
            raise Full


def size_of(capacity: int) -> int:
    """The bytes of a table of `capacity` slots."""
    return _HEADER_BYTES + capacity * _SLOT.size


def in_memory(capacity: int, old: InodeTable | None = None) -> InodeTable:
    """A new table that no other process sees, with the secret of `old`."""
    return _format(mmap.mmap(-1, size_of(capacity)), capacity, old)


def in_file(fd: int, capacity: int, old: InodeTable | None = None) -> InodeTable:
    """A new table in the empty file `fd`, with the secret of `old`. Its space is reserved, so that writing to the map
    cannot fail later.

    Raises OSError: no space.
    """
    os.posix_fallocate(fd, 0, size_of(capacity))
    return _format(mmap.mmap(fd, size_of(capacity)), capacity, old)


def open_file(fd: int) -> InodeTable:
    """The table in the file `fd`. Raises ValueError if it is none, OSError if it cannot be mapped."""
    return InodeTable(mmap.mmap(fd, 0))


def _format(buffer: mmap.mmap, capacity: int, old: InodeTable | None) -> InodeTable:
    secret = (0 if old is None else old.secret) or int.from_bytes(os.urandom(8), "little") | 1
    _HEADER.pack_into(buffer, 0, _MAGIC, capacity, 0, 0, 0, secret)
    return InodeTable(buffer)


def _read_header(buffer: mmap.mmap) -> tuple[int, int]:
    """Capacity and secret, if all of it is there: touching a map beyond the end of its file would kill the process."""
    if len(buffer) < _HEADER_BYTES:
        raise ValueError("too short for an inode table")
    magic, capacity, _, _, _, secret = _HEADER.unpack_from(buffer)
    is_sound = capacity.bit_count() == 1 and len(buffer) >= size_of(capacity)
    if not is_sound or (magic, secret & 1) not in ((_MAGIC, 1), (_OLD_MAGIC, 0)):
        raise ValueError("not an inode table")
    return int(capacity), int(secret)
