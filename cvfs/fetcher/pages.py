"""Pages by reference: from memory, else from the cache, else from a mirror; each brought once, however many ask."""

from typing import Final, NamedTuple

from cvfs.cache.index import Numbers
from cvfs.cache.memory import Memory
from cvfs.errors import CacheError
from cvfs.fetcher.blobs import Blobs
from cvfs.format.blob import unseal
from cvfs.format.pages import Inner, Leaf, Page, decode_page
from cvfs.inodes import Numbering
from cvfs.missing import Missing
from cvfs.model import BlobRef, Digest

_PAGE_ENTRIES: Final = 8
"""What a page takes beside its entries, as so many of them."""


class PageMissing(Missing):
    """A page is not in memory: bring it, then ask again."""

    def __init__(self, ref: BlobRef, pages: "Pages") -> None:
        super().__init__(ref.id.hex())
        self.ref, self._pages = ref, pages

    async def bring(self) -> None:
        await self._pages.page(self.ref)


class Known(NamedTuple):
    """A page in memory; of a leaf, the inode numbers of what it lists as well."""

    page: Page
    numbers: Numbers


class Pages:
    """The pages of one repository; up to `entries` records of them in memory. Errors as of `Fetcher`."""

    def __init__(self, blobs: Blobs, numbering: Numbering, entries: int) -> None:
        self._blobs, self._cache, self._numbering = blobs, blobs.cache, numbering
        self.memory: Memory[Digest, Known] = Memory(entries)

    def known_nowait(self, ref: BlobRef) -> Known:
        """The page `ref`, if it is in memory. Raises PageMissing otherwise."""
        known = self.memory.get(ref.id)
        if known is None:
            raise PageMissing(ref, self)
        return known

    async def page(self, ref: BlobRef) -> Page:
        """The page `ref`, in memory from now on; the inode index knows all that a leaf lists."""
        known = self.memory.get(ref.id)
        if known is None:
            known = await self._blobs.flights.join(("page", ref.id), lambda: self._bring(ref))
            # Put there by each who waited: the caller's next question finds it even if many others landed meanwhile.
            self.memory.put(ref.id, known, _weight(known.page))
        return known.page

    async def touch(self) -> None:
        """Note in the cache that what is in memory is used: it is not read from there for as long."""
        for page_id in list(self.memory):
            await self._blobs.in_thread(self._cache.blobs.touch, page_id)

    async def _bring(self, ref: BlobRef) -> Known:
        blobs, deadline = self._blobs, self._blobs.deadline()
        known = await blobs.in_thread(self._in_cache, ref)
        if known is None:
            lock = await blobs.lock(ref, deadline)
            try:
                known = await blobs.in_thread(self._in_cache, ref)
                if known is None:
                    blobs.counters.misses += 1
                    return await blobs.in_thread(self._take_in_and_keep, ref, await blobs.fetch(ref, deadline))
            finally:
                lock.release()
        blobs.counters.hits += 1
        return known

    def _take_in_and_keep(self, ref: BlobRef, stored: bytes) -> Known:
        known = self._take_in(ref, stored, "a mirror")
        try:
            self._cache.store_blob(ref.id, stored)
        except CacheError as error:
            self._blobs.degraded(error)
        return known

    def _in_cache(self, ref: BlobRef) -> Known | None:
        try:
            stored = self._cache.blobs.load(ref.id, ref.stored_size)
        except CacheError as error:
            self._blobs.degraded(error)
            return None
        return None if stored is None else self._take_in(ref, stored, "the cache")

    def _take_in(self, ref: BlobRef, stored: bytes, source: str) -> Known:
        page = decode_page(unseal(ref, stored, source))
        return Known(page, self._cache.index.adopt(self._numbering, ref, page) if isinstance(page, Leaf) else ())


def _weight(page: Page) -> int:
    """About how many entries' worth of memory a decoded page takes."""
    if isinstance(page, Leaf):
        return _PAGE_ENTRIES + sum(len(group.entries) for group in page.groups)
    return _PAGE_ENTRIES + len(page.children if isinstance(page, Inner) else page.locations)
