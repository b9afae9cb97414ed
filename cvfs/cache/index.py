"""The inode index: which record of which page an inode number stands for.

The kernel holds nothing but numbers, and the process that gave them out may be gone; so every number is in the index
before the kernel hears of it, and all processes of the host share it. It is needed only as long as a mount that was
given numbers lives, so each boot begins a new one and a power cut can tear none: hence no syncs.

Where there is no room for it on the disk it is kept in memory: what is mounted goes on.
"""

import contextlib
import logging
import threading
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from cvfs.cache import inode_table
from cvfs.cache.directory import CacheDirectory
from cvfs.cache.index_files import FIRST_CAPACITY, IndexFiles
from cvfs.cache.inode_table import Full, InodeTable
from cvfs.cache.leaves import LeafList, Owner
from cvfs.format.pages import Leaf
from cvfs.inodes import ROOT_INODE, Identity, Numbering
from cvfs.model import BlobRef, Digest

log = logging.getLogger(__name__)

_GROWTH = 2
_TRIM_AFTER = 4000
"""Entries. Each may touch a memory page of the map, around which the kernel maps up to 15 more."""

Numbers = Sequence[Sequence[int]]
"""The inode numbers of a leaf: one sequence for each group, parallel to its entries."""


class Place(NamedTuple):
    """Record number `position` of leaf `page`, in the repository whose `Numbering.seed` is `repository`."""

    repository: int
    page: BlobRef
    position: int


class InodeIndex:
    """Numbers and places, for all repositories. `find` takes microseconds; `adopt` writes: call it in a thread."""

    def __init__(self, directory: CacheDirectory) -> None:
        self._lock = threading.Lock()
        self._contested: dict[tuple[int, Identity], int] = {}
        self._touched = 0
        self._files: IndexFiles | None = None
        self._shared = False
        self._leaves = LeafList(None)
        try:
            self._files = IndexFiles(directory.path)
            self._table = self._files.first_table()
            self._leaves = LeafList(self._files.leaves_fd)
            self._shared = True
        except (OSError, ValueError) as error:
            log.warning("no inode index on disk (%s): it is kept in memory", error)
            self._table = inode_table.in_memory(FIRST_CAPACITY)

    def adopt(self, numbering: Numbering, page: BlobRef, leaf: Leaf) -> Numbers:
        """The inode number of each record of `leaf`, the page `page` of a repository; `find` knows them from now on."""
        identities = [numbering.entries(group.directory, group.entries) for group in leaf.groups]
        with self._lock:
            try:
                self._take_in((numbering.seed, page), identities)
            except (OSError, ValueError) as error:
                self._leave_disk(error)
                self._put_leaf((numbering.seed, page), identities)
            self._trim_sometimes(sum(map(len, identities)))
        return [self._numbers(numbering.seed, group) for group in identities]

    def find(self, number: int) -> Place | None:
        """Where the record with this inode number stands; None if it was never adopted."""
        table = self._table
        slot = table.find(number)
        if slot is None and table.moved:
            slot = self._newest_table().find(number)
        if slot is None:
            return None
        owner = self._leaves.get(slot.page)
        return None if owner is None else Place(*owner, slot.position)

    def resolve(self, seed: int, identity: Identity) -> int:
        """The inode number of `identity` in the repository with this seed: its own, or the one it was given because
        another file, or another repository's, has that."""
        return self._contested.get((seed, identity), identity.number) if self._contested else identity.number

    def pages(self) -> set[Digest]:
        """All leaves that were ever adopted since the machine was started."""
        return self._leaves.pages()

    def close(self) -> None:
        if self._files is not None:
            self._files.close()

    def _take_in(self, owner: Owner, identities: Sequence[Sequence[Identity]]) -> None:
        """Put a leaf in, unless another process has. Raises OSError or ValueError: the files are of no use any more."""
        if self._files is None or not self._shared:
            self._put_leaf(owner, identities)
        elif self._table.moved or self._table.contested or self._leaves.number(owner) is None:
            with self._files.locked():
                self._follow()
                self._put_leaf(owner, identities)

    def _put_leaf(self, owner: Owner, identities: Sequence[Sequence[Identity]]) -> None:
        page = self._leaves.number(owner)
        if page is None:
            page = self._leaves.add(owner)
        seed, every = owner[0], list(chain.from_iterable(identities))
        is_ours = partial(self._owns, seed)
        for position in self._put_free(page, every):
            self._put(seed, page, position, every[position], is_ours)

    def _put_free(self, page: int, identities: Sequence[Identity]) -> Sequence[int]:
        """Put what meets nothing else; the positions of the rest. A leaf is either new or known, so it is all or
        nothing of one, mostly."""
        if self._contested:
            return range(len(identities))
        while True:
            try:
                return self._table.put_all(page, identities)
            except Full:
                self._grow()

    def _put(self, seed: int, page: int, position: int, identity: Identity, is_ours: Callable[[int], bool]) -> None:
        number = self.resolve(seed, identity)
        while True:
            try:
                done = self._table.put(number, page, position, identity.check, is_ours)
            except Full:
                self._grow()
                continue
            if done:
                return
            number = number + 1 & 0xFFFFFFFFFFFFFFFF or ROOT_INODE + 1
            self._contested[seed, identity] = number
            self._table.mark_contested()
            log.warning("inode number %#x is taken: %#x it is", identity.number, number)

    def _owns(self, seed: int, page: int) -> bool:
        """Whether a leaf is of the repository with this seed, or of none. Hashes alone do not tell: a publisher could
        make an entry whose 80 bits are those of another's file, and the kernel would take the one for the other."""
        owner = self._leaves.get(page)
        return owner is None or owner[0] == seed

    def _numbers(self, seed: int, identities: Sequence[Identity]) -> Sequence[int]:
        if self._contested:
            return array("Q", [self.resolve(seed, identity) for identity in identities])
        return array("Q", [identity.number for identity in identities])

    def _follow(self) -> None:
        """Go on with the table of another process that has outgrown ours. Under both locks."""
        if self._files is not None and self._table.moved:
            self._table = self._files.newest_table() or self._table

    def _newest_table(self) -> InodeTable:
        """The table that took the place of ours. Waits for nobody; what cannot be opened now is tried again later."""
        table = self._table
        if self._files is not None:
            with contextlib.suppress(OSError, ValueError):
                table = self._files.newest_table() or table
        if self._lock.acquire(blocking=False):
            self._table = table
            self._lock.release()
        return table

    def _grow(self) -> None:
        capacity = self._table.capacity * _GROWTH
        if self._files is not None and self._shared:
            self._table = self._files.new_table(capacity, self._table)
            return
        larger = inode_table.in_memory(capacity)
        larger.take_over(self._table)
        self._table = larger

    def _leave_disk(self, error: Exception) -> None:
        """Go on with a copy of our own. Other processes go on with theirs: numbers are facts, so they agree."""
        log.warning("the inode index is not shared any more (%s): it is kept in memory", error)
        self._shared = False
        self._leaves.leave_disk()
        self._table = self._table.copy()

    def _trim_sometimes(self, touched: int) -> None:
        self._touched += touched
        if self._touched >= _TRIM_AFTER:
            self._touched = 0
            self._table.trim()
