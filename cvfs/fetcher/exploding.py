"""Packs in the cache become plain files when there is time.

A file of its own is read in 30 us, where its pack has to be decompressed for 3 ms; and it is kept or evicted for its
own sake. So whatever was read of a pack, and what its leaves list beside, is made files once nothing was brought for a
while, slowly. When all that is in a pack is a file the pack goes.

A cache that is nearly full keeps packs: they hold three times as much in the same space. Only what is asked for again
and again without the rest of its pack is worth its own place there; and what is pinned, which stays by its id.
"""

import logging
from collections.abc import Iterable
from typing import Final

import trio

from cvfs import pieces
from cvfs.cache.memory import Memory
from cvfs.errors import CvfsError, IntegrityError
from cvfs.fetcher.activity import Activity
from cvfs.fetcher.blobs import Blobs
from cvfs.fetcher.keeping import Keeper
from cvfs.fetcher.pages import Pages
from cvfs.format.blob import unseal
from cvfs.format.pages import Leaf
from cvfs.model import BlobRef, Digest
from cvfs.pieces import Piece, pieces_in_pack

log = logging.getLogger(__name__)

_PACKS: Final = 4096
"""Of this many it is remembered what was read of them: 4 GiB of small files."""

_FULL: Final = 7, 8
"""The part of the limit above which the cache counts as full."""

_FEW: Final = 32
"""Pieces, and a quarter of the bytes, at most, are few of a pack."""

_FILE_BYTES: Final = 4096
"""What a file may take beside its bytes: the rest of its last block."""


class _Noted:
    """What was read of a pack: by way of which leaves, which pieces if they are few, and from the cache or not."""

    __slots__ = ("few", "has_news", "leaves", "ref", "was_used")

    def __init__(self, ref: BlobRef) -> None:
        self.ref = ref
        self.leaves: set[BlobRef] = set()
        self.few: dict[Digest, Piece] = {}
        self.has_news = self.was_used = False


class Exploder:
    """Of one repository. No mirror is asked for anything here: what the cache has not is left out."""

    def __init__(self, blobs: Blobs, pages: Pages, keeper: Keeper) -> None:
        self._blobs, self._cache, self._pages, self._keeper = blobs, blobs.cache, pages, keeper
        self._noted: Memory[Digest, _Noted] = Memory(_PACKS)
        self.activity = Activity()
        """Whether packs are being brought, from a mirror or from the cache."""

    def note(self, piece: Piece, leaf: BlobRef) -> None:
        """A small object was read out of its pack, which the cache has; `leaf` lists it."""
        noted = self._noting(piece.location.pack)
        if leaf not in noted.leaves:
            noted.leaves.add(leaf)
            noted.has_news = True
        if len(noted.few) <= _FEW:
            noted.few[piece.id] = piece

    def note_kept(self, ref: BlobRef) -> None:
        """The cache is given a pack as it came."""
        self._noting(ref).has_news = True

    def note_use(self, ref: BlobRef) -> None:
        """A pack was read from the cache: not for the first time, that is."""
        noted = self._noting(ref)
        noted.was_used = noted.has_news = True

    async def explode(self, rest: float = 0) -> bool:
        """Make files of the packs of which something was read since the last time; False if some are left for the next.

        After each, `rest` times what it took is waited, and nothing more is done once packs are being brought again.
        Nor is anything while it is unknown how full the cache is. Raises CacheError: the disk failed.
        """
        if self._cache.quota.use().used_bytes is None:
            return False
        news = [noted for noted in map(self._noted.get, list(self._noted)) if noted and noted.has_news]
        for noted in news:
            if rest and self.activity.goes_on:
                return False
            start = trio.current_time()
            await self._explode(noted)
            await trio.sleep(rest * (trio.current_time() - start))
        return not any(noted.has_news for noted in news)

    def _noting(self, ref: BlobRef) -> _Noted:
        noted = self._noted.get(ref.id)
        if noted is None:
            noted = _Noted(ref)
            self._noted.put(ref.id, noted, 1)
        return noted

    async def _explode(self, noted: _Noted) -> None:
        lock = self._cache.locks.try_lock(noted.ref.id)
        if lock is None:  # it is being brought, or another process explodes it
            return
        try:
            leaves = [await self._leaf(ref) for ref in list(noted.leaves)]
            noted.has_news = False
            known = [piece for leaf in leaves if leaf for piece in _small_pieces(leaf, noted.ref)]
            wrong = await self._blobs.keep(self._make_files, noted, known)
            if wrong is None:
                noted.has_news = True
            else:
                self._keeper.tell(wrong)
        finally:
            lock.release()

    async def _leaf(self, ref: BlobRef) -> Leaf | None:
        try:
            page = await self._pages.cached(ref)
        except CvfsError as error:
            log.debug("exploding: %s", error)
            return None
        return page if isinstance(page, Leaf) else None

    def _make_files(self, noted: _Noted, known: list[Piece]) -> list[IntegrityError]:
        """In a thread; returns what was wrong. Raises CacheError: the disk failed; the pack stays."""
        cache, ref = self._cache, noted.ref
        chosen = self._choose(noted, known)
        stored = cache.packs.load(ref.id, ref.stored_size) if chosen else None
        if stored is None:
            return []
        wrong = pieces.store(cache, chosen, unseal(ref, stored, "the cache"))
        noted.few.clear()
        noted.was_used = False
        if not wrong and _cover(chosen, ref.plain_size):
            cache.packs.discard(ref.id)
        return wrong

    def _choose(self, noted: _Noted, known: list[Piece]) -> list[Piece]:
        """Which of the pieces that are known to be in a pack are made files."""
        if self._has_room(noted.ref.plain_size + _FILE_BYTES * len(known)):
            return known
        pinned = self._cache.quota.pins.among([piece.id for piece in known])
        few = noted.few if noted.was_used and _are_few(noted.few.values(), noted.ref) else {}
        return [piece for piece in known if piece.id in pinned or piece.id in few]

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more leave the cache not full."""
        use, (part, whole) = self._cache.quota.use(), _FULL
        if use.used_bytes is None or use.free_bytes - size < use.keep_free_bytes:
            return False
        return use.used_bytes + size <= use.limit_bytes * part // whole


def _small_pieces(leaf: Leaf, ref: BlobRef) -> list[Piece]:
    """The small objects that a leaf lists in a pack."""
    return [piece for piece in pieces_in_pack(leaf, leaf.packs.index(ref)) if piece.recipe is None]


def _cover(found: Iterable[Piece], plain_size: int) -> bool:
    """Whether pieces are all that is in their pack."""
    return sum({at.pack_offset: at.length for at in (piece.location for piece in found)}.values()) >= plain_size


def _are_few(read: Iterable[Piece], ref: BlobRef) -> bool:
    lengths = [piece.location.length for piece in read]
    return len(lengths) <= _FEW and sum(lengths) <= ref.plain_size // 4
