"""Pages and pieces of one repository by id, from memory, else from the cache, else from a mirror."""

from dataclasses import dataclass

import trio

from cvfs.cache import Cache
from cvfs.cache.index import Numbers, Place
from cvfs.fetcher.blobs import Blobs, Counters
from cvfs.fetcher.packs import INLINE_BYTES, Packs
from cvfs.fetcher.pages import PageMissing, Pages
from cvfs.format.pages import Page
from cvfs.inodes import Identity, Numbering
from cvfs.mirrors import Mirrors
from cvfs.model import BlobRef, Digest

__all__ = ["INLINE_BYTES", "Budget", "Counters", "Fetcher", "PageMissing"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a fetcher may hold in memory: `data_bytes`, half of packs and half of pieces, and decoded pages of
    `entries` records in all (about 500 bytes each)."""

    data_bytes: int = 24 << 20
    entries: int = 32_000


class Fetcher:
    """Brings what one repository has. Its flights run in `nursery`, which outlives every caller.

    Errors of its methods: TransportError and IntegrityError if no mirror gave the right bytes within `deadline_s`;
    FormatError if the publisher's bytes are at fault. A failing disk is no error: what was fetched is served uncached.
    """

    def __init__(
        self,
        mirrors: Mirrors,
        cache: Cache,
        numbering: Numbering,
        nursery: trio.Nursery,
        *,
        deadline_s: float = 30.0,
        budget: Budget | None = None,
    ) -> None:
        budget = budget or Budget()
        blobs = Blobs(mirrors, cache, nursery, deadline_s)
        self._mirrors, self._cache = mirrors, cache
        self._pages = Pages(blobs, numbering, budget.entries)
        self._packs = Packs(blobs, budget.data_bytes)
        self.numbering = numbering
        self.counters = blobs.counters
        self.page, self.touch_pages = self._pages.page, self._pages.touch
        self.piece, self.piece_nowait = self._packs.piece, self._packs.piece_nowait

    @property
    def mirror(self) -> str | None:
        """The address of the mirror that answered last; None if none did yet."""
        return self._mirrors.used

    def cached_bytes(self, content: Digest, recipe: Digest | None) -> int:
        """How many bytes of an object the cache has, as far as it can be told without reading."""
        return self._cache.objects.stored_bytes(content) if recipe is None else self._cache.large.stored_bytes(recipe)

    def place_of(self, inode: int) -> Place | None:
        """Where the record with this inode number stands, in this repository; None if no page taken in lists it."""
        place = self._cache.index.find(inode)
        return place if place is not None and place.repository == self.numbering.seed else None

    def resolve(self, identity: Identity) -> int:
        """The inode number of what has this identity."""
        return self._cache.index.resolve(self.numbering.seed, identity)

    def page_nowait(self, ref: BlobRef) -> Page:
        """The page `ref`, if it is in memory. Raises PageMissing otherwise."""
        return self._pages.known_nowait(ref).page

    def numbers_nowait(self, ref: BlobRef) -> Numbers:
        """The inode numbers of what the leaf `ref` lists, if it is in memory. Raises PageMissing otherwise."""
        return self._pages.known_nowait(ref).numbers

    def pages_in_memory(self) -> list[Digest]:
        """The ids of the pages that need not be read from the cache now."""
        return list(self._pages.memory)
