"""What was brought is put into the cache while its readers go on.

A pack of small objects goes there as it came: one file, of a third of the size, where its objects would be a hundred
files of 60 us each, made while somebody waits for the next pack. They are made when there is time (`exploding`). Chunks
of large objects have their place in a large file at once: there is one for each MiB.
"""

import logging
import math
from collections.abc import Callable
from typing import Final

import trio

from cvfs import pieces
from cvfs.errors import IntegrityError
from cvfs.fetcher.blobs import Blobs
from cvfs.pieces import Around, Pack, Piece

log = logging.getLogger(__name__)

_REST_S: Final = 1.0
"""For how long a disk that has failed is not written to."""


class Keeper:
    """Of one repository. Nothing is waited for, and a disk that fails harms nobody."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs, self._cache = blobs, blobs.cache
        self._resting_until = -math.inf
        self.keeps_packs = True
        """Whether small objects may stay in their packs; else they become files at once."""

    def keep_pack(self, pack: Pack, stored: bytes, done: Callable[[], None]) -> None:
        """Put a pack into the cache as it came; then call `done`."""
        if self._is_resting():
            done()
        else:
            pack.is_stored = True
            pack.stores_under_way += 1
            self._blobs.store_soon(self._store_pack, pack, stored, done)

    def keep_pieces(self, pack: Pack, piece: Piece, around: Around, done: Callable[[], None]) -> None:
        """Put a piece, and what else is in its pack, into the cache; then call `done`."""
        if self._is_resting():
            done()
        else:
            parts = pack.begin_to_keep([piece, *around.same_pack()])
            pack.stores_under_way += 1
            self._blobs.store_soon(self._store_pieces, pack, parts, done)

    def tell(self, wrong: list[IntegrityError]) -> None:
        """Log pieces whose bytes do not have the id that the publisher gave them: nobody else can mend them."""
        self._blobs.counters.integrity_errors += len(wrong)
        for error in wrong:
            log.error("the publisher's fault: %s", error)

    def _is_resting(self) -> bool:
        return trio.current_time() < self._resting_until

    async def _store_pack(self, pack: Pack, stored: bytes, done: Callable[[], None]) -> None:
        try:
            if not await self._blobs.keep(self._put_pack, pack, stored):
                pack.is_stored = False
                self._rest()
        finally:
            pack.stores_under_way -= 1
            done()

    def _put_pack(self, pack: Pack, stored: bytes) -> bool:
        self._cache.store_pack(pack.ref.id, stored)
        return True

    async def _store_pieces(self, pack: Pack, parts: list[Piece], done: Callable[[], None]) -> None:
        try:
            wrong = await self._blobs.keep(pieces.store, self._cache, parts, pack.plain)
            if wrong is None:
                pack.fail_to_keep(parts)
                self._rest()
            else:
                self.tell(wrong)
        finally:
            pack.stores_under_way -= 1
            done()

    def _rest(self) -> None:
        self._resting_until = trio.current_time() + _REST_S
