"""Pages and pieces of one repository by id, from memory, else from the cache, else from a mirror."""

import msgspec
import trio

from cvfs.cache import Cache
from cvfs.cache.index import Place
from cvfs.fetcher.blobs import Blobs, Counters
from cvfs.fetcher.exploding import Exploder
from cvfs.fetcher.keeping import Keeper
from cvfs.fetcher.mending import Mender, NumberLost
from cvfs.fetcher.packs import INLINE_BYTES, Packs
from cvfs.fetcher.pages import PageMissing, Pages
from cvfs.fetcher.shared import Budget, Shared
from cvfs.inodes import Identity, Numbering
from cvfs.mirrors import Mirrors
from cvfs.model import Digest, Location

__all__ = ["INLINE_BYTES", "Budget", "Counters", "Fetcher", "NumberLost", "PageMissing", "Shared"]


class Fetcher:
    """Brings what one repository has, and holds it in the memory that is `shared` with others.

    Its flights run in `nursery`, which outlives every caller.

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
        shared: Shared | None = None,
    ) -> None:
        shared = shared or Shared()
        blobs = Blobs(mirrors, cache, nursery, deadline_s)
        self._mirrors, self._cache = mirrors, cache
        self._pages = Pages(blobs, numbering, shared)
        self._keeper = Keeper(blobs)
        self.mender = Mender(blobs, self._pages, numbering)
        self.exploder = Exploder(blobs, self._pages, self._keeper)
        self._packs = Packs(blobs, shared, self._pages, self._keeper, self.exploder)
        self.numbering = numbering
        self.counters = blobs.counters
        self.page, self.touch_pages = self._pages.page, self._pages.touch
        self.page_nowait, self.numbers_nowait = self._pages.page_nowait, self._pages.numbers_nowait
        self.pages_in_memory = self._pages.in_memory
        self.wait_until_stored = blobs.wait_until_stored
        self.piece, self.piece_nowait = self._packs.piece, self._packs.piece_nowait

    def bring_only_what_is_asked(self) -> None:
        """For who reads much at once and knows what is to come: to read ahead would bring what is not wanted."""
        self._packs.ahead.is_on = False

    def keep_as_files(self) -> None:
        """For who wants what is read to be files of the cache at once, each with an id of its own: what is pinned."""
        self._keeper.keeps_packs = False

    @property
    def mirror(self) -> str | None:
        """The address of the mirror that answered last; None if none did yet."""
        return self._mirrors.used

    def cached_bytes(self, content: Digest, recipe: Digest | None) -> int:
        """How many bytes of an object the cache has as a file, as far as it can be told without reading."""
        return self._cache.objects.stored_bytes(content) if recipe is None else self._cache.large.stored_bytes(recipe)

    def has_pack(self, pack: Digest) -> bool:
        """Whether the cache has a pack as it came, as far as it can be told without reading."""
        return self._cache.packs.stored_bytes(pack) > 0

    def keeps_object(self, content: Digest, at: Location) -> bool:
        """Whether the cache has a small object, in a pack only where that will do; told without reading."""
        is_file = self._cache.objects.stored_bytes(content) == at.length
        return is_file or (self._keeper.keeps_packs and self.has_pack(at.pack.id))

    def keeps_chunk(self, recipe: Digest, at: Location) -> bool:
        """Whether the cache has a chunk of a large object, told without reading: by its middle, as the blocks at its
        ends may be there for the chunks beside it."""
        middle = msgspec.structs.replace(at, object_offset=at.object_offset + at.length // 2, length=1)
        return self._cache.large.has_data(recipe, middle)

    def place_of(self, inode: int) -> Place | None:
        """Where the record with this inode number stands, in this repository; None if no page taken in lists it."""
        place = self._cache.index.find(inode)
        return place if place is not None and place.repository == self.numbering.seed else None

    def resolve(self, identity: Identity) -> int:
        """The inode number of what has this identity."""
        return self._cache.index.resolve(self.numbering.seed, identity)
