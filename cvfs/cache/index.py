"""The inode index: which record of which page an inode number stands for.

The kernel holds nothing but numbers, and the process that gave them out may be gone; so every number is in the index
before the kernel hears of it, and all processes of the host share it. It is needed only as long as a mount that was
given numbers lives, so each boot begins a new one and a power cut can tear none: hence no syncs.

It is on the disk of the cache. What finds no space there, even after evicting, goes into files in the host's memory,
which outlive this process as well; what finds none there either into its own memory, so that what is mounted goes on.
The disk is tried again a little later. All parts are asked for a number, in this order, and a number that one has is
not given out anew by another.
"""

import contextlib
import logging
import threading
from array import array
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from cvfs.cache.directory import CacheDirectory, as_cache_error
from cvfs.cache.index_part import Part
from cvfs.cache.index_places import Places
from cvfs.cache.inode_table import Slot
from cvfs.cache.leaves import Owner
from cvfs.errors import CacheError, FormatError
from cvfs.format.pages import Leaf
from cvfs.inodes import ROOT_INODE, Identity, Numbering
from cvfs.model import BlobRef, Digest

log = logging.getLogger(__name__)

_TRIM_AFTER = 4000
"""Entries. Each may touch a memory page of the map, around which the kernel maps up to 15 more."""

_MOST_CONTESTS = 64
"""Of entries for one number in one repository. Of honest ones not even two ever meet."""

Numbers = Sequence[Sequence[int]]
"""The inode numbers of a leaf: one sequence for each group, parallel to its entries."""

_ALL_BITS = (1 << 64) - 1


class Place(NamedTuple):
    """Record number `position` of leaf `page`, in the repository whose `Numbering.seed` is `repository`."""

    repository: int
    page: BlobRef
    position: int


class InodeIndex:
    """Numbers and places, for all repositories. `find` takes microseconds; `adopt` writes: call it in a thread.

    `evict(size)` makes room on the disk, if it can.
    """

    def __init__(self, directory: CacheDirectory, evict: Callable[[int], object] = lambda size: None) -> None:
        self._places = Places(directory.path, evict)
        self._lock = threading.Lock()
        self._contested: dict[tuple[int, Identity], int] = {}
        self._touched = 0
        next(self._places.usable())
        self._places.open_those_there()

    def adopt(self, numbering: Numbering, page: BlobRef, leaf: Leaf, *, anew: bool = False) -> Numbers:
        """The inode number of each record of `leaf`, the page `page` of a repository; `find` knows them from now on.
        `anew`: they are put there also if that was done before, by whoever sees that some are lost.

        Raises FormatError: its entries were made to have one number. CacheError: the disk failed.
        """
        identities = [numbering.entries(group.directory, group.entries) for group in leaf.groups]
        with self._lock:
            self._take_in((numbering.seed, page), list(chain.from_iterable(identities)), anew=anew)
            self._trim_sometimes(sum(map(len, identities)))
        return [self._numbers(numbering.seed, group) for group in identities]

    def find(self, number: int) -> Place | None:
        """Where the record with this inode number stands; None if it was never adopted.

        Raises CacheError: the disk failed.
        """
        try:
            for part in self._places.parts:
                slot = part.table.find(number) or part.find(number)
                owner = None if slot is None else part.leaves.get(slot.page)
                if slot is not None and owner is not None:
                    return Place(*owner, slot.position)
        except OSError as error:
            raise as_cache_error("cannot read the inode index", error) from error
        return self.find(number) if self._places.open_those_there() else None

    def resolve(self, seed: int, identity: Identity) -> int:
        """The inode number of `identity` in the repository with this seed: its own, or the one it was given because
        another file, or another repository's, has that."""
        return self._contested.get((seed, identity), identity.number) if self._contested else identity.number

    def pages(self) -> set[Digest]:
        """All leaves that were ever adopted since the machine was started. Raises CacheError: the disk failed."""
        try:
            return set().union(*(part.leaves.pages() for part in self._places.parts))
        except OSError as error:
            raise as_cache_error("cannot read the inode index", error) from error

    def leaves_of(self, seed: int) -> list[BlobRef]:
        """The leaves that were adopted of the repository with this seed. Raises CacheError: the disk failed."""
        try:
            return list(dict.fromkeys(page for part in self._places.parts for page in part.leaves.of(seed)))
        except OSError as error:
            raise as_cache_error("cannot read the inode index", error) from error

    def close(self) -> None:
        self._places.close()

    def _take_in(self, owner: Owner, identities: Sequence[Identity], *, anew: bool) -> None:
        """Put a leaf in, unless it is there."""
        if not anew and self._is_known(owner) and not any(part.table.contested for part in self._places.parts):
            return
        self._places.open_those_there()  # they may have these numbers
        for place, part in self._places.usable():
            if self._places.with_space(place, part.growth_bytes, partial(self._put_leaf, part, owner, identities)):
                return
        raise CacheError("the inode index cannot be kept anywhere")

    def _is_known(self, owner: Owner) -> bool:
        with contextlib.suppress(OSError):
            return any(part.leaves.number(owner) is not None for part in self._places.parts)
        return False

    def _put_leaf(self, part: Part, owner: Owner, identities: Sequence[Identity]) -> bool:
        """Put a leaf into one part. It is listed once its numbers are there, so none that is listed lacks some; and
        numbers that were given out lead to it only then. So who is killed in between has done no harm."""
        with part.locked():
            known = part.leaves.number(owner)
            page = part.leaves.next_number() if known is None else known
            part.make_room(len(identities))
            others = [each for each in self._places.parts if each is not part]
            rest = self._put_free(part, page, identities, owner[0], others)
            if known is None:
                part.leaves.add(owner)
            for position in rest:
                self._put(part, Slot(0, page, position, 0), identities[position], owner[0], others)
        return True

    def _put_free(
        self, part: Part, page: int, identities: Sequence[Identity], seed: int, others: Collection[Part]
    ) -> Sequence[int]:
        """Put what meets nothing else; the positions of the rest."""
        if not others and not self._contested:
            return part.put_all(page, identities)
        rest = []
        for position, identity in enumerate(identities):
            number = self.resolve(seed, identity)
            is_free = not any(each.holder(number) for each in others)
            if not is_free or not part.put(Slot(number, page, position, identity.check), part.is_unlisted):
                rest.append(position)
        return rest

    def _put(self, part: Part, slot: Slot, identity: Identity, seed: int, others: Collection[Part]) -> None:
        """Put a record there under its number, or under the next that nothing else has."""
        first = number = self.resolve(seed, identity)
        for _ in range(_MOST_CONTESTS):
            if self._put_under(part, slot._replace(number=number, check=identity.check), seed, others):
                break
            part.table.mark_contested()
            number = number + self._step(seed) & _ALL_BITS
            number += 2 * (number <= ROOT_INODE)
        else:
            raise FormatError(f"more than {_MOST_CONTESTS} entries were made to have the inode number {first:#x}")
        if number != first:
            self._contested[seed, identity] = number
            log.warning("inode number %#x is taken: %#x it is", identity.number, number)

    def _put_under(self, part: Part, slot: Slot, seed: int, others: Collection[Part]) -> bool:
        """Whether a record has the number of `slot` now, or had it. Hashes alone do not tell whose a number is: a
        publisher could make an entry whose 80 bits are those of another's file, and the kernel would take the one for
        the other."""
        for each in others:
            found = each.holder(slot.number)
            if found is not None:
                (holder, _), held = found
                return held.check == slot.check and holder == seed
        return part.put(slot, lambda page: part.is_unlisted(page) or part.is_of(page, seed))

    def _step(self, seed: int) -> int:
        """From a number that is taken to the next: another way for each repository, which none can foresee, so that no
        publisher can be there first. The same in all processes."""
        secret = self._places.parts[0].table.secret
        return xxh3_64_intdigest(seed.to_bytes(8, "little"), secret) | 1 if secret else 1

    def _numbers(self, seed: int, identities: Sequence[Identity]) -> Sequence[int]:
        if self._contested:
            return array("Q", [self.resolve(seed, identity) for identity in identities])
        return array("Q", [identity.number for identity in identities])

    def _trim_sometimes(self, touched: int) -> None:
        self._touched += touched
        if self._touched >= _TRIM_AFTER:
            self._touched = 0
            for part in self._places.parts:
                part.table.trim()
