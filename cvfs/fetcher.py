"""Pages and pieces by id: from memory, else from the cache, else from a mirror; each brought once, however many ask.

What else to fetch, and when, is policy and not decided here.
"""

import logging
import math
import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import trio

from cvfs import pieces
from cvfs.cache import Cache
from cvfs.cache.index import Numbers, Place
from cvfs.cache.locks import NO_LOCK, Lock
from cvfs.cache.memory import Memory
from cvfs.errors import CacheError, IntegrityError, TooSlowError
from cvfs.flights import Flights, Room
from cvfs.format.blob import unseal
from cvfs.format.pages import Inner, Leaf, Page, decode_page
from cvfs.inodes import Identity, Numbering
from cvfs.mirrors import Mirrors
from cvfs.missing import Missing
from cvfs.model import BlobRef, Digest
from cvfs.pieces import Pack, Piece

log = logging.getLogger(__name__)

INLINE_BYTES = 256 << 10
"""A piece up to this size is read from the cache at once, in the loop: 70 us at most, where a thread costs 145 us."""

_ONE_REQUEST_BYTES = 128 << 10
"""What the kernel asks for at once, unless a larger size was agreed on."""

_UNDER_WAY_BYTES = 32 << 20
"""Of packs, stored and plain, from when they are asked for until they are in the cache: bounds memory, whether the net
or the disk is the slower one. A guess: 16 packs of small files, 4 of large ones."""

_THREADS = 8
_LOCK_POLL_S = 0.01
_REST_S = 1.0
"""For how long a disk that has failed is not written to."""

_QUIET_S = 60.0

T = TypeVar("T")

Neighbours = Callable[[], Iterable[Piece]]


class PageMissing(Missing):
    """A page is not in memory: bring it, then ask again."""

    def __init__(self, ref: BlobRef, fetcher: "Fetcher") -> None:
        super().__init__(ref.id.hex())
        self.ref, self._fetcher = ref, fetcher

    async def bring(self) -> None:
        await self._fetcher.page(self.ref)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a fetcher may hold in memory: `data_bytes`, half of packs and half of pieces, and decoded pages of
    `entries` records in all (about 500 bytes each)."""

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
    integrity_errors: int = 0


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
        self._mirrors, self._cache, self.numbering = mirrors, cache, numbering
        self._nursery = nursery
        self._deadline_s = deadline_s
        self._flights = Flights(nursery)
        self._threads = trio.CapacityLimiter(_THREADS)
        self._under_way = Room(_UNDER_WAY_BYTES)
        self._pages: Memory[Digest, _Known] = Memory(budget.entries)
        self._packs: Memory[Digest, Pack] = Memory(budget.data_bytes // 2)
        self._pieces: Memory[Hashable, bytes] = Memory(budget.data_bytes // 2)
        self._resting_until = -math.inf
        self._quiet_until = 0.0
        self.counters = Counters()

    # Inode numbers

    def place_of(self, inode: int) -> Place | None:
        """Where the record with this inode number stands, in this repository; None if no page taken in lists it."""
        place = self._cache.index.find(inode)
        return place if place is not None and place.repository == self.numbering.seed else None

    def resolve(self, identity: Identity) -> int:
        """The inode number of what has this identity."""
        return self._cache.index.resolve(self.numbering.seed, identity)

    # Pages

    def page_nowait(self, ref: BlobRef) -> Page:
        """The page `ref`, if it is in memory. Raises PageMissing otherwise."""
        return self._known_nowait(ref).page

    def numbers_nowait(self, ref: BlobRef) -> Numbers:
        """The inode numbers of what the leaf `ref` lists, if it is in memory. Raises PageMissing otherwise."""
        return self._known_nowait(ref).numbers

    async def page(self, ref: BlobRef) -> Page:
        """The page `ref`, in memory from now on; the inode index knows all that a leaf lists."""
        known = self._pages.get(ref.id)
        if known is None:
            known = await self._flights.join(("page", ref.id), lambda: self._bring_page(ref))
            # Put there by each who waited: the caller's next question finds it even if many others landed meanwhile.
            self._pages.put(ref.id, known, _weight(known.page))
        return known.page

    def pages_in_memory(self) -> list[Digest]:
        """The ids of the pages that need not be read from the cache now."""
        return list(self._pages)

    async def touch_pages(self) -> None:
        """Note in the cache that what is in memory is used: it is not read from there for as long."""
        for page_id in self.pages_in_memory():
            await self._in_thread(self._cache.blobs.touch, page_id)

    def _known_nowait(self, ref: BlobRef) -> "_Known":
        known = self._pages.get(ref.id)
        if known is None:
            raise PageMissing(ref, self)
        return known

    async def _bring_page(self, ref: BlobRef) -> "_Known":
        deadline = trio.current_time() + self._deadline_s
        known = await self._in_thread(self._page_in_cache, ref)
        if known is None:
            lock = await self._lock(ref, deadline)
            try:
                known = await self._in_thread(self._page_in_cache, ref)
                if known is None:
                    self.counters.misses += 1
                    return await self._in_thread(self._take_in_and_keep, ref, await self._fetch(ref, deadline))
            finally:
                lock.release()
        self.counters.hits += 1
        return known

    def _take_in_and_keep(self, ref: BlobRef, stored: bytes) -> "_Known":
        known = self._take_in(ref, stored, "a mirror")
        try:
            self._cache.store_blob(ref.id, stored)
        except CacheError as error:
            self._degraded(error)
        return known

    def _page_in_cache(self, ref: BlobRef) -> "_Known | None":
        try:
            stored = self._cache.blobs.load(ref.id, ref.stored_size)
        except CacheError as error:
            self._degraded(error)
            return None
        return None if stored is None else self._take_in(ref, stored, "the cache")

    def _take_in(self, ref: BlobRef, stored: bytes, source: str) -> "_Known":
        page = decode_page(unseal(ref, stored, source))
        return _Known(page, self._cache.index.adopt(self.numbering, ref, page) if isinstance(page, Leaf) else ())

    # Pieces

    def piece_nowait(self, piece: Piece, neighbours: Neighbours) -> bytes | memoryview | None:
        """The piece, if it is in memory, or small and in the cache; else None. `neighbours` as for `piece`."""
        data = self._piece_in_memory(piece, neighbours)
        if data is None and piece.location.length <= INLINE_BYTES:
            data = self._hold(piece, self._piece_in_cache(piece))
        if data is not None:
            self.counters.hits += 1
        return data

    async def piece(self, piece: Piece, neighbours: Neighbours) -> bytes | memoryview:
        """The piece. `neighbours()` are the pieces of its pack that are to be kept as well when the pack comes."""
        data = self.piece_nowait(piece, neighbours)
        if data is None and piece.location.length > INLINE_BYTES:
            data = await self._load_piece(piece)
        while data is None:
            pack = await self._flights.join(
                ("pack", piece.location.pack.id), lambda: self._bring_pack(piece, neighbours)
            )
            if pack is not None:
                self.counters.misses += 1
                return self._serve(pack, piece, neighbours)
            data = await self._load_piece(piece)
        return data

    def _piece_in_memory(self, piece: Piece, neighbours: Neighbours) -> bytes | memoryview | None:
        data = self._pieces.get(piece.key)
        if data is not None:
            return data
        pack = self._packs.get(piece.location.pack.id)
        return None if pack is None else self._serve(pack, piece, neighbours)

    async def _load_piece(self, piece: Piece) -> bytes | None:
        """The piece from the cache; read and verified once for all of the kernel's requests that it answers."""
        load = partial(self._in_thread, self._piece_in_cache, piece)
        data = self._hold(piece, await self._flights.join(("piece", piece.key), load))
        self.counters.hits += data is not None
        return data

    def _piece_in_cache(self, piece: Piece) -> bytes | None:
        try:
            return pieces.load(self._cache, piece)
        except CacheError as error:
            self._degraded(error)
            return None

    def _hold(self, piece: Piece, data: bytes | None) -> bytes | None:
        """Keep what the kernel will ask for in several requests, so that it is verified only once for them."""
        if data is not None and len(data) > _ONE_REQUEST_BYTES:
            self._pieces.put(piece.key, data, len(data))
        return data

    def _serve(self, pack: Pack, piece: Piece, neighbours: Neighbours) -> memoryview:
        """The piece out of its pack. Whoever reads from memory sees to it that the cache has it, too."""
        try:
            data = pack.cut(piece)
        except IntegrityError:
            self.counters.integrity_errors += 1
            raise
        if not pack.is_kept(piece):
            self._keep(pack, [piece, *neighbours()], lambda: None)
        return data

    async def _bring_pack(self, piece: Piece, neighbours: Neighbours) -> Pack | None:
        """The piece's pack; None if another process has just put the piece into the cache."""
        deadline = trio.current_time() + self._deadline_s
        ref = piece.location.pack
        with ExitStack() as held:
            held.callback((await self._lock(ref, deadline)).release)
            if await self._in_thread(self._piece_in_cache, piece) is not None:
                return None
            held.callback(await self._make_room(ref, deadline))
            stored = await self._fetch(ref, deadline)
            pack = Pack(ref, await self._in_thread(unseal, ref, stored, "a mirror"))
            self._packs.put(ref.id, pack, len(pack.plain))
            self._keep(pack, [piece, *neighbours()], held.pop_all().close)
        return pack

    def _keep(self, pack: Pack, wanted: Iterable[Piece], done: Callable[[], None]) -> None:
        """Put pieces into the cache while their readers go on, then call `done`."""
        if trio.current_time() < self._resting_until:
            done()
        else:
            self._nursery.start_soon(self._explode, pack, pack.begin_to_keep(wanted), done)

    async def _explode(self, pack: Pack, parts: list[Piece], done: Callable[[], None]) -> None:
        try:
            with trio.CancelScope(shield=True):  # what was read is cached, also if its reader ends the client at once
                wrong = await self._in_thread(pieces.store, self._cache, parts, pack.plain)
            self.counters.integrity_errors += len(wrong)
            for error in wrong:
                log.error("the publisher's fault: %s", error)
        except CacheError as error:
            pack.fail_to_keep(parts)
            self._resting_until = trio.current_time() + _REST_S
            self._degraded(error)
        finally:
            done()

    # What both need

    async def _fetch(self, ref: BlobRef, deadline: float) -> bytes:
        """The stored bytes of a blob, verified."""
        try:
            stored = await self._mirrors.fetch_blob(ref, deadline - trio.current_time())
        except IntegrityError:
            self.counters.integrity_errors += 1
            raise
        self.counters.fetched_blobs += 1
        self.counters.fetched_bytes += len(stored)
        return stored

    async def _lock(self, ref: BlobRef, deadline: float) -> Lock:
        """Be the one process that fetches `ref`. One that takes more than half of the time is not waited for."""
        with trio.move_on_at(deadline - self._deadline_s / 2):
            while True:
                lock = self._cache.locks.try_lock(ref.id)
                if lock is not None:
                    return lock
                await trio.sleep(_LOCK_POLL_S)
        return NO_LOCK

    async def _make_room(self, ref: BlobRef, deadline: float) -> Callable[[], None]:
        """Wait until the pack may be under way with the others that are; returns what ends that."""
        size = ref.stored_size + ref.plain_size
        with trio.move_on_at(deadline):
            await self._under_way.take(size)
            return partial(self._under_way.give_back, size)
        raise TooSlowError(f"pack {ref.id.hex()}", "too many packs before this one")

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._threads)

    def _degraded(self, error: CacheError) -> None:
        """The disk failed: say so once a minute, and go on without it."""
        self.counters.uncached += 1
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_S
            log.warning("%s: serving uncached", error)


class _Known(NamedTuple):
    """A page in memory; of a leaf, the inode numbers of what it lists as well."""

    page: Page
    numbers: Numbers


def _weight(page: Page) -> int:
    """About how many entries' worth of memory a decoded page takes."""
    if isinstance(page, Leaf):
        return sum(len(group.entries) for group in page.groups)
    return len(page.children if isinstance(page, Inner) else page.locations)
