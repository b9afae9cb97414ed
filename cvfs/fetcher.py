"""Pages and pieces by id: from memory, else from the cache, else from a mirror; each brought once, however many ask.

What else to fetch, and when, is policy and not decided here.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from cvfs import pieces
from cvfs.cache import Cache
from cvfs.cache.index import Place
from cvfs.cache.memory import Memory
from cvfs.errors import CacheError, IntegrityError
from cvfs.flights import Flights
from cvfs.format.blob import unseal
from cvfs.format.pages import Inner, Leaf, Page, decode_page
from cvfs.inodes import Identity, Numbering
from cvfs.mirrors import Mirrors
from cvfs.model import BlobRef, Digest
from cvfs.pieces import Piece

log = logging.getLogger(__name__)

INLINE_BYTES = 256 << 10
"""A piece up to this size is read from the cache at once, in the loop: 70 us at most, where a thread costs 145 us."""

_ONE_REQUEST_BYTES = 128 << 10
"""What the kernel asks for at once, unless a larger size was agreed on."""

_EXPLODING_PACKS = 4
"""Packs that may wait for the disk before the next is fetched: bounds memory when the disk is slower than the net."""

_LOCK_POLL_S = 0.01
_QUIET_S = 60.0


class PageMissing(Exception):
    """A page is not in memory: bring it, then ask again."""

    def __init__(self, ref: BlobRef) -> None:
        super().__init__(ref.id.hex())
        self.ref = ref


@dataclass(frozen=True, slots=True)
class Budget:
    """What a fetcher may hold in memory: `data_bytes` of packs and pieces, decoded pages of `entries` records in all
    (about 500 bytes each)."""

    data_bytes: int = 24 << 20
    entries: int = 32_000


@dataclass(slots=True)
class Counters:
    """Since the start. A hit is a piece or page that was in memory or in the cache; a miss needed a mirror."""

    hits: int = 0
    misses: int = 0
    fetched_blobs: int = 0
    fetched_bytes: int = 0
    uncached: int = 0
    wrong_bytes: int = 0


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
        self._mirrors, self._cache, self._numbering = mirrors, cache, numbering
        self._nursery = nursery
        self._deadline_s = deadline_s
        self._flights = Flights(nursery)
        self._pages: Memory[Digest, Page] = Memory(budget.entries)
        self._data: Memory[Digest, bytes | memoryview] = Memory(budget.data_bytes)
        self._exploding = trio.CapacityLimiter(_EXPLODING_PACKS)
        self._quiet_until = 0.0
        self.counters = Counters()

    # Inode numbers

    def place_of(self, inode: int) -> Place | None:
        """Where the record with this inode number stands, in this repository; None if no page taken in lists it."""
        place = self._cache.index.find(inode)
        return place if place is not None and place.repository == self._numbering.seed else None

    def resolve(self, identity: Identity) -> int:
        """The inode number of what has this identity."""
        return self._cache.index.resolve(identity)

    # Pages

    def page_nowait(self, ref: BlobRef) -> Page:
        """The page `ref`, if it is in memory. Raises PageMissing otherwise."""
        page = self._pages.get(ref.id)
        if page is None:
            raise PageMissing(ref)
        return page

    async def page(self, ref: BlobRef) -> Page:
        """The page `ref`, in memory from now on; the inode index knows all that a leaf lists."""
        page = self._pages.get(ref.id)
        if page is None:
            page = await self._flights.join(ref.id, lambda: self._bring_page(ref))
        return page

    async def _bring_page(self, ref: BlobRef) -> Page:
        page = await trio.to_thread.run_sync(self._page_in_cache, ref)
        if page is None and await self._lock(ref):
            page = await trio.to_thread.run_sync(self._page_in_cache, ref)
        try:
            if page is None:
                page = await self._fetch_page(ref)
            else:
                self.counters.hits += 1
        finally:
            self._cache.locks.unlock(ref.id)
        self._pages.put(ref.id, page, _weight(page))
        return page

    async def _fetch_page(self, ref: BlobRef) -> Page:
        stored = await self._fetch(ref)
        return await trio.to_thread.run_sync(self._take_in_and_keep, ref, stored)

    def _take_in_and_keep(self, ref: BlobRef, stored: bytes) -> Page:
        page = self._take_in(ref, stored, "a mirror")
        try:
            self._cache.blobs.store(ref.id, stored)
        except CacheError as error:
            self._degraded(error)
        return page

    def _page_in_cache(self, ref: BlobRef) -> Page | None:
        try:
            stored = self._cache.blobs.load(ref.id, ref.stored_size)
        except CacheError as error:
            self._degraded(error)
            return None
        return None if stored is None else self._take_in(ref, stored, "the cache")

    def _take_in(self, ref: BlobRef, stored: bytes, source: str) -> Page:
        page = decode_page(unseal(ref, stored, source))
        if isinstance(page, Leaf):
            self._cache.index.adopt(self._numbering, ref, page)
        return page

    # Pieces

    def piece_nowait(self, piece: Piece) -> bytes | memoryview | None:
        """The piece, if it is in memory, or small and in the cache; else None."""
        data = self._piece_in_memory(piece)
        if data is None and piece.location.length <= INLINE_BYTES:
            data = self._piece_in_cache(piece)
        if data is not None:
            self.counters.hits += 1
        return data

    async def piece(self, piece: Piece, neighbours: Callable[[], list[Piece]]) -> bytes | memoryview:
        """The piece. `neighbours()` are the pieces of its pack that are to be kept as well when the pack comes."""
        data = self.piece_nowait(piece)
        if data is None and piece.location.length > INLINE_BYTES:
            data = await trio.to_thread.run_sync(self._piece_in_cache, piece)
            self.counters.hits += data is not None
        if data is not None:
            return data
        self.counters.misses += 1
        pack = piece.location.pack
        plain = await self._flights.join(pack.id, lambda: self._bring_pack(piece, neighbours))
        if plain is not None:
            return self._cut(piece, plain)
        data = await trio.to_thread.run_sync(self._piece_in_cache, piece)
        return data if data is not None else self._cut(piece, await self._fetch_pack(pack))

    def _piece_in_memory(self, piece: Piece) -> bytes | memoryview | None:
        data = self._data.get(piece.id)
        if data is not None:
            return data
        plain = self._data.get(piece.location.pack.id)
        return None if plain is None else self._cut(piece, plain)

    def _cut(self, piece: Piece, plain: bytes | memoryview) -> memoryview:
        data = pieces.cut(piece, plain)
        self._hold(piece, data)
        return data

    def _hold(self, piece: Piece, data: bytes | memoryview) -> None:
        """Keep what the kernel will ask for in several requests, so that it is verified only once for them."""
        if len(data) > _ONE_REQUEST_BYTES:
            self._data.put(piece.id, data, len(data))

    def _piece_in_cache(self, piece: Piece) -> bytes | None:
        try:
            data = pieces.load(self._cache, piece)
        except CacheError as error:
            self._degraded(error)
            return None
        if data is not None:
            self._hold(piece, data)
        return data

    async def _bring_pack(self, piece: Piece, neighbours: Callable[[], list[Piece]]) -> bytes | None:
        """The plain bytes of the piece's pack; None if another process has just put the piece into the cache."""
        pack = piece.location.pack
        if await self._lock(pack) and await trio.to_thread.run_sync(self._piece_in_cache, piece) is not None:
            self._cache.locks.unlock(pack.id)
            return None
        slot = object()
        try:
            plain = await self._fetch_pack(pack)
            await self._exploding.acquire_on_behalf_of(slot)
        except BaseException:
            self._cache.locks.unlock(pack.id)
            raise
        self._nursery.start_soon(self._explode, pack, plain, neighbours(), slot)
        return plain

    async def _fetch_pack(self, pack: BlobRef) -> bytes:
        stored = await self._fetch(pack)
        plain = await trio.to_thread.run_sync(unseal, pack, stored, "a mirror")
        self._data.put(pack.id, plain, len(plain))
        return plain

    async def _explode(self, pack: BlobRef, plain: bytes, parts: list[Piece], slot: object) -> None:
        """Put what a pack is made of into the cache. Readers do not wait for it: they have `plain`."""
        try:
            for error in await trio.to_thread.run_sync(pieces.store, self._cache, parts, plain):
                self.counters.wrong_bytes += 1
                log.error("the publisher's fault: %s", error)
        except CacheError as error:
            self._degraded(error)
        finally:
            self._cache.locks.unlock(pack.id)
            self._exploding.release_on_behalf_of(slot)

    # What both need

    async def _fetch(self, ref: BlobRef) -> bytes:
        """The stored bytes of a blob, verified."""
        try:
            stored = await self._mirrors.fetch_blob(ref, self._deadline_s)
        except IntegrityError:
            self.counters.wrong_bytes += 1
            raise
        self.counters.fetched_blobs += 1
        self.counters.fetched_bytes += len(stored)
        return stored

    async def _lock(self, ref: BlobRef) -> bool:
        """Be the one process that fetches `ref`; True if another was, just before. Waits no longer than for a fetch."""
        waited = False
        with trio.move_on_after(self._deadline_s):
            while not self._cache.locks.try_lock(ref.id):
                waited = True
                await trio.sleep(_LOCK_POLL_S)
        return waited

    def _degraded(self, error: CacheError) -> None:
        """The disk failed: say so once a minute, and go on without it."""
        self.counters.uncached += 1
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_S
            log.warning("%s: serving uncached", error)


def _weight(page: Page) -> int:
    """About how many entries' worth of memory a decoded page takes."""
    if isinstance(page, Leaf):
        return sum(len(group.entries) for group in page.groups)
    return len(page.children if isinstance(page, Inner) else page.locations)
