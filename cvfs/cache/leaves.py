"""The leaves that the inode index speaks of, by number: an append-only file that every process reads as it grows."""

import os
import struct
import threading

from cvfs.model import BlobRef, Digest

_RECORD = struct.Struct("=Q32sII")
_NONE = bytes(_RECORD.size)
"""Behind the last leaf: space is reserved for many at once, so that to add one cannot fail."""

_STEP = 1024
_READ_BYTES = _RECORD.size * 4096

Owner = tuple[int, BlobRef]
"""The seed of a repository's `Numbering`, and one of its leaves."""


class LeafList:
    """Leaves and their numbers: in the file `fd`, or in memory alone (None). Safe to use from several threads.

    Raises OSError: the disk failed.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._list: list[Owner] = []
        self._numbers: dict[Owner, int] = {}

    def number(self, owner: Owner) -> int | None:
        """The number of a leaf, None if it has none yet."""
        known = self._numbers.get(owner)
        if known is None:
            self._read_on()
            known = self._numbers.get(owner)
        return known

    def get(self, number: int) -> Owner | None:
        """The leaf that has a number."""
        if number >= len(self._list):
            self._read_on()
        return self._list[number] if number < len(self._list) else None

    def pages(self) -> set[Digest]:
        """The ids of all."""
        self._read_on()
        return {page.id for _, page in self._list}

    def of(self, seed: int) -> list[BlobRef]:
        """Those of the repository with this seed."""
        self._read_on()
        return [page for owner, page in self._list if owner == seed]

    def next_number(self) -> int:
        """The number of the leaf that is added next, for which there is space now. Only one process at a time may."""
        self._read_on()
        number = len(self._list)
        if self._fd is not None and os.fstat(self._fd).st_size < (number + 1) * _RECORD.size:
            os.posix_fallocate(self._fd, number * _RECORD.size, _STEP * _RECORD.size)
        return number

    def add(self, owner: Owner) -> None:
        """Give a leaf the next number. A number once given is never given again."""
        with self._lock:
            if self._fd is not None:
                seed, page = owner
                record = _RECORD.pack(seed, page.id, page.stored_size, page.plain_size)
                os.pwrite(self._fd, record, len(self._list) * _RECORD.size)
            self._append(owner)

    def _read_on(self) -> None:
        """Take in what other processes have added."""
        with self._lock:
            whole = self._fd is not None
            while whole:
                whole = self._read_some()

    def _read_some(self) -> bool:
        """Whether there may be more."""
        assert self._fd is not None
        data = os.pread(self._fd, _READ_BYTES, len(self._list) * _RECORD.size)
        end = len(data) // _RECORD.size * _RECORD.size
        for at in range(0, end, _RECORD.size):
            if data[at : at + _RECORD.size] == _NONE:
                return False
            seed, page_id, stored_size, plain_size = _RECORD.unpack_from(data, at)
            self._append((seed, BlobRef(Digest(page_id), stored_size, plain_size)))
        return end == _READ_BYTES

    def _append(self, owner: Owner) -> None:
        self._numbers[owner] = len(self._list)
        self._list.append(owner)
