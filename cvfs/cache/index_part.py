"""A part of the inode index: one table of numbers, and the list of the leaves that they lead to."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from cvfs.cache import inode_table
from cvfs.cache.index_files import FIRST_CAPACITY, IndexFiles
from cvfs.cache.inode_table import Full, InodeTable, Slot
from cvfs.cache.leaves import LeafList, Owner
from cvfs.inodes import Identity

T = TypeVar("T")

_GROWTH = 2


class Part:
    """Shared by all processes in `files`, or in the memory of this process alone (None).

    One writer at a time: all that puts something in is to be called in `locked`, and raises OSError where there is no
    space, ValueError where files are broken.
    """

    def __init__(self, files: IndexFiles | None, table: InodeTable | None = None) -> None:
        self.files = files
        self._lock = threading.Lock()
        self.leaves = LeafList(None if files is None else files.leaves_fd)
        self.table = table or inode_table.in_memory(FIRST_CAPACITY)

    def close(self) -> None:
        self.table.close()
        if self.files is not None:
            self.files.close()

    @property
    def growth_bytes(self) -> int:
        """What a table takes that has room for more."""
        return inode_table.size_of(self.table.capacity * _GROWTH)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One writer among all threads and processes, with the newest table."""
        with self._lock, contextlib.nullcontext() if self.files is None else self.files.locked():
            if self.table.moved and self.files is not None:
                self.table = self.files.newest_table() or self.table
            yield

    def find(self, number: int) -> Slot | None:
        """The slot of `number`; None if it is not here. Waits for nobody."""
        table = self.table
        slot = table.find(number)
        return self._newest_table(table).find(number) if slot is None and table.moved else slot

    def holder(self, number: int) -> tuple[Owner, Slot] | None:
        """The leaf that a number leads to, and its slot; None if there is none. Raises OSError: the disk failed."""
        slot = self.find(number)
        owner = None if slot is None else self.leaves.get(slot.page)
        return None if slot is None or owner is None else (owner, slot)

    def _newest_table(self, table: InodeTable) -> InodeTable:
        """The one that has taken the place of `table`. What cannot be opened now is tried again later."""
        if self.files is not None:
            with contextlib.suppress(OSError, ValueError):
                table = self.files.newest_table() or table
        if self._lock.acquire(blocking=False):
            self.table = table
            self._lock.release()
        return table

    def make_room(self, count: int) -> None:
        """Have room for so many numbers more: then nothing is put there only in part."""
        self._again_if_full(lambda: self.table.check_room(count))

    def put_all(self, page: int, identities: Sequence[Identity]) -> Sequence[int]:
        """Put the records of a leaf where their numbers are free; the positions of the rest."""
        return self._again_if_full(lambda: self.table.put_all(page, identities))

    def put(self, slot: Slot, may_replace: Callable[[int], bool]) -> bool:
        """Put one record there, or in place of another with its check if `may_replace` that one's leaf; else False."""
        return self._again_if_full(lambda: self.table.put(*slot, may_replace))

    def is_unlisted(self, page: int) -> bool:
        """Whether there is no leaf with this number yet: who wanted to add it was killed, or has just added it."""
        return self.leaves.get(page) is None

    def is_of(self, page: int, seed: int) -> bool:
        """Whether a leaf is of the repository with this seed."""
        owner = self.leaves.get(page)
        return owner is not None and owner[0] == seed

    def _again_if_full(self, put: Callable[[], T]) -> T:
        while True:
            try:
                return put()
            except Full:
                self._grow()

    def _grow(self) -> None:
        capacity = self.table.capacity * _GROWTH
        if self.files is not None:
            self.table = self.files.new_table(capacity, self.table)
            return
        larger = inode_table.in_memory(capacity, self.table)
        larger.take_over(self.table)
        self.table = larger
