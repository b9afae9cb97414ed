"""What the fetchers of a process hold in memory: within one budget, however many repositories are open.

Packs and pieces are named by their content, so they are the same for all. A page is, too, but the inode numbers of what
it lists are those of one repository.
"""

from collections.abc import Hashable
from typing import Final, NamedTuple

import msgspec

from cvfs.cache.index import Numbers
from cvfs.cache.memory import Memory
from cvfs.fetcher.activity import Activity
from cvfs.format.pages import Inner, Leaf, Page
from cvfs.limits import MAX_LEVEL
from cvfs.model import BlobRef, Digest
from cvfs.pieces import Pack

PAGES_AT_LEAST: Final = MAX_LEVEL + 4
"""Of the pages used last, so many are held however large they are: all that lead to a record, and some more. Else two
that together outweigh the budget would put each other out, and a question that needs both never ended."""

# In bytes, beside those of names, ids and values, as measured with sys.getsizeof().
_PAGE, _ENTRY, _LOCATION, _REF, _XATTR, _CHILD = 4096, 420, 170, 160, 130, 420


class Budget(msgspec.Struct, frozen=True):
    """What may be held: packs and pieces while they are in use, and decoded pages, by default those of 33,000 small
    files.

    Four readers, each of whom goes through packs of several hands (a publisher fills one for each core) while the next
    is brought, want some 24 of 1 MiB: with 12 of them packs were unsealed again 214 times, and reading took 7 % longer.
    """

    pack_bytes: int = 28 << 20
    piece_bytes: int = 12 << 20
    page_bytes: int = 22 << 20


class PageInMemory(NamedTuple):
    """A page in memory; of a leaf, the inode numbers of what it lists as well. `weight` is in bytes, about."""

    page: Page
    numbers: Numbers
    weight: int


class Shared:
    """The memory of all fetchers of a process. A page's key has the seed of the numbering of its repository."""

    def __init__(self, budget: Budget | None = None) -> None:
        budget = budget or Budget()
        self.packs: Memory[Digest, Pack] = Memory(budget.pack_bytes)
        self.pieces: Memory[Hashable, bytes | memoryview] = Memory(budget.piece_bytes)
        self.pages: Memory[tuple[Digest, int], PageInMemory] = Memory(budget.page_bytes)
        self.activity = Activity()
        """Whether packs and large pieces are brought or read."""

    def rest(self) -> None:
        """Hold no packs and pieces any more that the cache has: nobody reads."""
        self.pieces.clear()
        for pack in [pack for pack in self.packs.values() if pack.was_taken]:
            self.packs.drop(pack.ref.id)

    def put_page(self, key: tuple[Digest, int], known: PageInMemory) -> None:
        """Hold a page, as one of those used last."""
        self.pages.put(key, known, min(known.weight, self.pages.budget // PAGES_AT_LEAST))


def weigh(ref: BlobRef, page: Page) -> int:
    """About how many bytes of memory a decoded page takes, whatever it was made to be."""
    parts = _PAGE + ref.plain_size
    if isinstance(page, Inner):
        return parts + len(page.children) * _CHILD
    if not isinstance(page, Leaf):
        return parts + len(page.locations) * (_LOCATION + _REF)
    parts += len(page.packs) * _REF
    for group in page.groups:
        places = sum([len(at.locations) + len(at.location_pages) for at in group.contents if at is not None])
        xattrs = sum([len(entry.xattrs) for entry in group.entries])
        parts += (len(group.entries) + 1) * _ENTRY + places * _LOCATION + xattrs * _XATTR
    return parts
