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

_LEAVES: Final = 64
"""Of a pack's leaves so many are looked at in one go: a licence text is in one pack, and in thousands of leaves."""

_PIECES: Final = 1 << 16
"""Of a pack so many are made files at once, about: bounds memory, whatever leaves claim to have in it."""

_FULL: Final = 7, 8
"""The part of the limit above which the cache counts as full."""

_FEW: Final = 32
_FEW_PART: Final = 4
"""So many pieces, and this part of the bytes, at most, are few of a pack."""

_FILE_BYTES: Final = 4096
"""What a file may take beside its bytes: the rest of its last block."""


_Place = tuple[Digest, int, int]
"""An object's id, where it begins in its pack, and its length."""


class _Noted:
    """What was read of a pack: by way of which leaves, which pieces if they are few, and from the cache or not."""

    __slots__ = ("few", "has_news", "leaves", "ref", "told", "was_used")

    def __init__(self, ref: BlobRef) -> None:
        self.ref = ref
        self.leaves: set[BlobRef] = set()
        self.few: dict[Digest, int] | None = {}
        """Lengths by id; None: they are many."""
        self.told: set[str] = set()
        """The ids under which there was something else."""
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
        if leaf not in noted.leaves and len(noted.leaves) < _LEAVES:
            noted.leaves.add(leaf)
            noted.has_news = True
        if noted.few is not None:
            noted.few[piece.id] = piece.location.length
            if len(noted.few) > _FEW:
                noted.few = None

    def note_kept(self, ref: BlobRef) -> None:
        """The cache is given a pack as it came."""
        self._noting(ref).has_news = True

    def note_use(self, ref: BlobRef) -> None:
        """A pack was read from the cache: not for the first time, that is."""
        noted = self._noting(ref)
        noted.was_used = noted.has_news = True

    async def explode(self, rest: float = 0) -> bool:
        """Make files of the packs of which something was read since the last time; False if some are left for the next.

        After each, `rest` times what it took is waited, and nothing more is done once packs are being brought again, or
        the disk does not take one. Nor is anything while it is unknown how full the cache is. Raises CacheError: the
        disk failed.
        """
        if self._cache.quota.use().used_bytes is None:
            return False
        news = [noted for noted in map(self._noted.get, list(self._noted)) if noted and noted.has_news]
        for noted in news:
            if rest and self.activity.goes_on:
                return False
            start = trio.current_time()
            if not await self._explode(noted):
                self._noted.get(noted.ref.id)  # used last: next time it is the turn of others before
                return False
            await trio.sleep(rest * (trio.current_time() - start))
        return not any(noted.has_news for noted in news)

    def _noting(self, ref: BlobRef) -> _Noted:
        noted = self._noted.get(ref.id)
        if noted is None:
            noted = _Noted(ref)
            self._noted.put(ref.id, noted, 1)
        return noted

    async def _explode(self, noted: _Noted) -> bool:
        """Whether the disk has not failed."""
        lock = self._cache.locks.try_lock(noted.ref.id)
        if lock is None:  # it is being brought, or another process explodes it
            return True
        try:
            noted.has_news = False
            known = await self._known(noted)
            few = dict(noted.few) if noted.was_used and noted.few is not None else {}
            wrong = await self._blobs.keep(self._make_files, noted, known, few)
            if wrong is None:
                noted.has_news = True
                return False
            self._keeper.tell([error for error in wrong if error.wanted not in noted.told])
            noted.told.update(error.wanted for error in wrong)
            if len(noted.leaves) == _LEAVES and not noted.has_news:
                noted.leaves.clear()  # so that others have their turn
        finally:
            lock.release()
        return True

    async def _known(self, noted: _Noted) -> list[Piece]:
        """What is known to be in a pack, each once; leaf by leaf, as many together would take much memory."""
        known: dict[_Place, Piece] = {}
        for ref in list(noted.leaves):
            leaf = await self._leaf(ref)
            if leaf is None:  # it is noted again when it was brought again
                noted.leaves.discard(ref)
            elif len(known) < _PIECES:
                known |= await self._blobs.in_thread(_small_pieces, leaf, noted.ref)
        return list(known.values())

    async def _leaf(self, ref: BlobRef) -> Leaf | None:
        try:
            page = await self._pages.cached(ref)
        except CvfsError as error:
            log.debug("exploding: %s", error)
            return None
        return page if isinstance(page, Leaf) else None

    def _make_files(self, noted: _Noted, known: list[Piece], few: dict[Digest, int]) -> list[IntegrityError]:
        """In a thread; returns what was wrong. Raises CacheError: the disk failed; the pack stays."""
        cache, ref = self._cache, noted.ref
        chosen = self._choose(ref, known, few)
        stored = cache.packs.load(ref.id, ref.stored_size) if chosen else None
        if stored is None:
            return []
        wrong = pieces.store(cache, chosen, unseal(ref, stored, "the cache"))
        noted.few, noted.was_used = {}, False
        if not wrong and _cover(chosen, ref.plain_size):
            cache.packs.discard(ref.id)
            cache.quota.evictor.forget_dropped()
        return wrong

    def _choose(self, ref: BlobRef, known: list[Piece], few: dict[Digest, int]) -> list[Piece]:
        """Which of the pieces that are known to be in a pack are made files."""
        if self._has_room(ref.plain_size + _FILE_BYTES * len(known)):
            return known
        pinned = self._cache.quota.pins.among([piece.id for piece in known])
        are_few = sum(few.values()) <= ref.plain_size // _FEW_PART
        return [piece for piece in known if piece.id in pinned or (are_few and piece.id in few)]

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more leave the cache not full."""
        use, (part, whole) = self._cache.quota.use(), _FULL
        if use.used_bytes is None or use.free_bytes - size < use.keep_free_bytes:
            return False
        return use.used_bytes + size <= use.limit_bytes * part // whole


def _small_pieces(leaf: Leaf, ref: BlobRef) -> dict[_Place, Piece]:
    """The small objects that a leaf lists in a pack, each once: many files may have the same content."""
    if ref not in leaf.packs:  # the same id, and another size: a lie
        return {}
    found = (piece for piece in pieces_in_pack(leaf, leaf.packs.index(ref)) if piece.recipe is None)
    return {(piece.id, piece.location.pack_offset, piece.location.length): piece for piece in found}


def _cover(found: Iterable[Piece], plain_size: int) -> bool:
    """Whether pieces are all that is in their pack."""
    end = 0
    for offset, length in sorted((at.pack_offset, at.length) for at in (piece.location for piece in found)):
        if offset > end:
            return False
        end = max(end, offset + length)
    return end >= plain_size
