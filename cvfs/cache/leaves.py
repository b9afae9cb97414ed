"""The leaves that the inode index speaks of, by number: an append-only file that every process reads as it grows."""

import os
import struct
import threading

from cvfs.model import BlobRef, Digest

_RECORD = struct.Struct("=Q32sII")
_READ_BYTES = _RECORD.size * 4096

Owner = tuple[int, BlobRef]
"""The seed of a repository's `Numbering`, and one of its leaves."""


class LeafList:
    """Leaves and their numbers: in the file `fd`, or in memory alone (None). Safe to use from several threads."""

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

    def add(self, owner: Owner) -> int:
        """Give a leaf the next number; only one process at a time may. A number once given is never given again.

        Raises OSError: no space; the leaf has no number.
        """
        self._read_on()
        with self._lock:
            number = len(self._list)
            if self._fd is not None:
                _write(self._fd, owner, number)
            self._append(owner)
        return number

    def leave_disk(self) -> None:
        """From now on keep in memory what comes."""
        with self._lock:
            self._fd = None

    def _read_on(self) -> None:
        """Take in what other processes have added."""
        with self._lock:
            if self._fd is None:
                return
            whole = _READ_BYTES
            while whole == _READ_BYTES:
                data = os.pread(self._fd, _READ_BYTES, len(self._list) * _RECORD.size)
                whole = len(data) // _RECORD.size * _RECORD.size
                for seed, page_id, stored_size, plain_size in _RECORD.iter_unpack(data[:whole]):
                    self._append((seed, BlobRef(Digest(page_id), stored_size, plain_size)))

    def _append(self, owner: Owner) -> None:
        self._numbers[owner] = len(self._list)
        self._list.append(owner)


def _write(fd: int, owner: Owner, number: int) -> None:
    seed, page = owner
    record = _RECORD.pack(seed, page.id, page.stored_size, page.plain_size)
    if os.pwrite(fd, record, number * _RECORD.size) != len(record):
        raise OSError("no space for another leaf")
