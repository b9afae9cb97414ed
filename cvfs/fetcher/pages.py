"""Pages by reference: from memory, else from the cache, else from a mirror; each brought once, however many ask."""

import contextlib
from collections.abc import Callable
from typing import Final

from cvfs.cache.index import Numbers
from cvfs.errors import CacheError
from cvfs.fetcher.blobs import Blobs
from cvfs.fetcher.shared import PageInMemory, Shared, weigh
from cvfs.flights import Room
from cvfs.format.blob import unseal
from cvfs.format.pages import Inner, Leaf, Page, decode_page
from cvfs.inodes import Numbering
from cvfs.missing import Missing
from cvfs.model import BlobRef, Digest

_UNDER_WAY_BYTES: Final = 8 << 20
"""Of pages, as of packs (`packs`): apart from these, since no lookup should wait for data. A guess, 60 pages."""


class PageMissing(Missing):
    """A page is not in memory: bring it, then ask again."""

    def __init__(self, ref: BlobRef, pages: "Pages") -> None:
        super().__init__(ref.id.hex())
        self.ref, self._pages = ref, pages

    async def bring(self) -> None:
        await self._pages.page(self.ref)


class Pages:
    """The pages of one repository. Errors as of `Fetcher`."""

    def __init__(self, blobs: Blobs, numbering: Numbering, shared: Shared) -> None:
        self._blobs, self._cache, self._numbering, self._shared = blobs, blobs.cache, numbering, shared
        self._memory, self._seed = shared.pages, numbering.seed
        self._under_way = Room(_UNDER_WAY_BYTES)

    def page_nowait(self, ref: BlobRef) -> Page:
        """The page `ref`, if it is in memory. Raises PageMissing otherwise."""
        known = self._memory.get((ref.id, self._seed))
        if known is None:
            raise PageMissing(ref, self)
        return known.page

    def numbers_nowait(self, ref: BlobRef) -> Numbers:
        """The inode numbers of what the leaf `ref` lists, if it is in memory. Raises PageMissing otherwise."""
        known = self._memory.get((ref.id, self._seed))
        if known is None:
            raise PageMissing(ref, self)
        return known.numbers

    def in_memory(self) -> list[Digest]:
        """The ids of the pages that need not be read from the cache now."""
        return [page_id for page_id, seed in self._memory if seed == self._seed]

    def after(self, ref: BlobRef) -> BlobRef | None:
        """The page behind `ref` in the order of the tree, as far as one of the pages in memory lists both."""
        for known in self._memory.values():
            if isinstance(known.page, Inner):
                blobs = [child.blob for child in known.page.children]
                if ref in blobs[:-1]:
                    return blobs[blobs.index(ref) + 1]
        return None

    async def page(self, ref: BlobRef) -> Page:
        """The page `ref`, in memory from now on; the inode index knows all that a leaf lists."""
        key = ref.id, self._seed
        known = self._memory.get(key)
        if known is None:
            known = await self._blobs.flights.join(("page", ref.id), lambda: self._bring(ref))
            # Put there by each who waited: the caller's next question finds it even if many others landed meanwhile.
            self._shared.put_page(key, known)
        return known.page

    async def cached(self, ref: BlobRef) -> Page | None:
        """The page `ref`, if it is in memory or in the cache: no mirror is asked for it."""
        known = self._memory.get((ref.id, self._seed)) or await self._blobs.in_thread(self._in_cache, ref)
        return None if known is None else known.page

    async def touch(self) -> None:
        """Note in the cache that what is in memory is used: it is not read from there for as long."""
        for page_id in self.in_memory():
            await self._blobs.in_thread(self._cache.blobs.touch, page_id)

    async def _bring(self, ref: BlobRef) -> PageInMemory:
        blobs, deadline = self._blobs, self._blobs.deadline()
        known = await blobs.in_thread(self._in_cache, ref)
        with contextlib.ExitStack() as held:
            if known is None:
                held.callback((await blobs.lock(ref, deadline)).release)
                known = await blobs.in_thread(self._in_cache, ref)
            if known is not None:
                blobs.counters.hits += 1
                return known
            blobs.counters.misses += 1
            held.callback(await blobs.make_room(self._under_way, ref, deadline))
            stored = await blobs.fetch(ref, deadline)
            known = await blobs.in_thread(self._take_in, ref, stored, "a mirror")
            blobs.store_soon(self._keep, ref, stored, held.pop_all().close)
        return known

    async def _keep(self, ref: BlobRef, stored: bytes, done: Callable[[], None]) -> None:
        """Put a page into the cache while its readers go on. Until `done`, other processes wait for it."""
        try:
            await self._blobs.keep(self._cache.store_blob, ref.id, stored)
        finally:
            done()

    def _in_cache(self, ref: BlobRef) -> PageInMemory | None:
        try:
            stored = self._cache.blobs.load(ref.id, ref.stored_size)
        except CacheError as error:
            self._blobs.degraded(error)
            return None
        return None if stored is None else self._take_in(ref, stored, "the cache")

    def _take_in(self, ref: BlobRef, stored: bytes, source: str) -> PageInMemory:
        page = decode_page(unseal(ref, stored, source))
        numbers = self._cache.index.adopt(self._numbering, ref, page) if isinstance(page, Leaf) else ()
        return PageInMemory(page, numbers, weigh(ref, page))
