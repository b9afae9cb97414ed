"""What was shown last: inode numbers, and where their records stand.

The next question is mostly about something just shown: a name is looked up, then the file is read. The inode index
knows every number that was ever given out, but it takes five times as long, since the record has to be checked.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import Final

import msgspec

from cvfs.format.tree.lookup import Found
from cvfs.model import BlobRef

_NUMBERS: Final = 4096
"""The last so many are known, or up to twice as many: 1 MB."""


class Where(msgspec.Struct, frozen=True, gc=False):
    """A record, as in `Found`, but without its page."""

    page: BlobRef
    number: int
    index: int


class Seen:
    """Where records stand, by inode number, in one revision. It holds on to no page.

    When there are too many, those are forgotten that were not shown since it was last so: two tables, of which the
    older one is dropped, cost half of what it does to know the order in which each was used.
    """

    def __init__(self) -> None:
        self._new: dict[int, Where] = {}
        self._old: dict[int, Where] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def where(self, inode: int) -> Where | None:
        """Where the record with this number stands; None if it was not shown lately."""
        return self._new.get(inode) or self._old.get(inode)

    def note(self, inode: int, found: Found) -> None:
        """A record is shown."""
        self._new[inode] = Where(found.page, found.number, found.index)
        self._bound()

    def note_all(self, inodes: Sequence[int], found: Found, first: int) -> None:
        """The records of the group of `found` are shown that have these numbers, from the one at index `first` on."""
        indices = range(first, first + len(inodes))
        self._new.update(zip(inodes, map(Where, repeat(found.page), repeat(found.number), indices), strict=True))
        self._bound()

    def _bound(self) -> None:
        if len(self._new) >= _NUMBERS:
            self._new, self._old = {}, self._new
