"""Pieces by id: from memory, else from the cache, else out of a pack from a mirror; each pack brought once."""

import contextlib
import logging
import math
from collections.abc import Callable
from functools import partial

import trio

from cvfs import pieces
from cvfs.errors import CacheError, CvfsError, IntegrityError
from cvfs.fetcher.ahead import follows
from cvfs.fetcher.blobs import Blobs
from cvfs.fetcher.shared import Shared
from cvfs.flights import Room
from cvfs.format.blob import unseal
from cvfs.model import Digest
from cvfs.pieces import Around, Pack, Piece

log = logging.getLogger(__name__)

INLINE_BYTES = 256 << 10
"""A piece up to this size is read from the cache at once, in the loop: 70 us at most, where a thread costs 145 us."""

_ONE_REQUEST_BYTES = 128 << 10
"""What the kernel asks for at once, unless a larger size was agreed on."""

_UNDER_WAY_BYTES = 32 << 20
"""Of packs, stored and plain, from when they are asked for until they are in the cache: bounds memory, whether the net
or the disk is the slower one. A guess: 16 packs of small files, 4 of large ones."""

_PACK_BYTES = 4 << 10
"""What a pack takes in memory beside its bytes. Each small change of a repository brings a pack of a few bytes."""

_REST_S = 1.0
"""For how long a disk that has failed is not written to."""


class Packs:
    """The pieces of one repository. Errors as of `Fetcher`.

    What is under way is each repository's own: one whose server is dead must not hold up the others.
    """

    def __init__(self, blobs: Blobs, shared: Shared) -> None:
        self._blobs, self._cache, self._counters = blobs, blobs.cache, blobs.counters
        self._under_way = Room(_UNDER_WAY_BYTES)
        self.packs, self.pieces, self._activity = shared.packs, shared.pieces, shared.activity
        self._ahead: set[Digest] = set()
        self.reads_ahead = True
        self._resting_until = -math.inf

    def piece_nowait(self, piece: Piece, around: Around) -> bytes | memoryview | None:
        """The piece, if it is in memory, or small and in the cache; else None."""
        data = self._in_memory(piece, around)
        if data is None and piece.location.length <= INLINE_BYTES:
            data = self._hold(piece, self._in_cache(piece))
        if data is not None:
            self._counters.hits += 1
        return data

    async def piece(self, piece: Piece, around: Around) -> bytes | memoryview:
        """The piece; if its pack has to be brought, what else is in it according to `around` is kept as well."""
        data = self.piece_nowait(piece, around)
        if data is None and piece.location.length > INLINE_BYTES:
            data = await self._load(piece)
        while data is None:
            pack = await self._join(piece, around)
            if pack is not None:
                self._counters.misses += 1
                return self._serve(pack, piece, around)
            data = await self._load(piece)
        return data

    async def _join(self, piece: Piece, around: Around) -> Pack | None:
        """The flight of a piece's pack."""
        key = "pack", piece.location.pack.id
        return await self._blobs.flights.join(key, lambda: self._bring(piece, around))

    def _in_memory(self, piece: Piece, around: Around) -> bytes | memoryview | None:
        data = self.pieces.get(piece.key)
        if data is not None:
            return data
        pack = self.packs.get(piece.location.pack.id)
        return None if pack is None else self._serve(pack, piece, around)

    async def _load(self, piece: Piece) -> bytes | None:
        """The piece from the cache; read and verified once for all of the kernel's requests that it answers."""
        load = partial(self._blobs.in_thread, self._in_cache, piece)
        data = self._hold(piece, await self._blobs.flights.join(("piece", piece.key), load))
        self._counters.hits += data is not None
        return data

    def _in_cache(self, piece: Piece) -> bytes | None:
        try:
            return pieces.load(self._cache, piece)
        except CacheError as error:
            self._blobs.degraded(error)
            return None

    def _hold(self, piece: Piece, data: bytes | None) -> bytes | None:
        """Keep what the kernel will ask for in several requests, so that it is verified only once for them."""
        if data is not None and len(data) > _ONE_REQUEST_BYTES:
            self.pieces.put(piece.key, data, len(data))
            self._activity.note()
        return data

    def _serve(self, pack: Pack, piece: Piece, around: Around) -> memoryview:
        """The piece out of its pack. Whoever reads from memory sees to it that the cache has it, too."""
        try:
            data = pack.cut(piece)
        except IntegrityError:
            self._counters.integrity_errors += 1
            raise
        if not pack.is_kept(piece):
            self._keep(pack, piece, around, lambda: None)
        if not pack.was_read:
            pack.was_read = True
            if self.reads_ahead:
                self._read_ahead(around)
        return data

    def _read_ahead(self, around: Around) -> None:
        """A pack is read for the first time: if that follows the one before it, begin to bring the one behind it."""
        following = around.next_pack() if follows(around, self.packs) else None
        if following is None:
            return
        pack_id = following[0].location.pack.id
        if pack_id not in self._ahead and self.packs.get(pack_id) is None:
            self._ahead.add(pack_id)
            self._blobs.nursery.start_soon(self._bring_ahead, *following)

    async def _bring_ahead(self, piece: Piece, around: Around) -> None:
        try:
            self._counters.ahead += await self._join(piece, around) is not None
        except CvfsError as error:
            log.debug("reading ahead: %s", error)  # who needs it will hear of it
        finally:
            self._ahead.discard(piece.location.pack.id)

    async def _bring(self, piece: Piece, around: Around) -> Pack | None:
        """The piece's pack; None if the piece is in the cache: another process has just put it there."""
        blobs, deadline = self._blobs, self._blobs.deadline()
        ref = piece.location.pack
        with contextlib.ExitStack() as held:
            held.callback((await blobs.lock(ref, deadline)).release)
            if await blobs.in_thread(self._in_cache, piece) is not None:
                return None
            held.callback(await blobs.make_room(self._under_way, ref, deadline))
            stored = await blobs.fetch(ref, deadline)
            pack = Pack(ref, await blobs.in_thread(unseal, ref, stored, "a mirror"))
            self.packs.put(ref.id, pack, len(pack.plain) + _PACK_BYTES)
            self._activity.note()
            self._keep(pack, piece, around, held.pop_all().close)
        return pack

    def _keep(self, pack: Pack, piece: Piece, around: Around, done: Callable[[], None]) -> None:
        """Put a piece, and what else is in its pack, into the cache while readers go on; then call `done`."""
        if trio.current_time() < self._resting_until:
            done()
        else:
            parts = pack.begin_to_keep([piece, *around.same_pack()])
            self._blobs.nursery.start_soon(self._explode, pack, parts, done)

    async def _explode(self, pack: Pack, parts: list[Piece], done: Callable[[], None]) -> None:
        try:
            wrong = await self._blobs.keep(pieces.store, self._cache, parts, pack.plain)
            if wrong is None:
                pack.fail_to_keep(parts)
                self._resting_until = trio.current_time() + _REST_S
                return
            self._counters.integrity_errors += len(wrong)
            for error in wrong:
                log.error("the publisher's fault: %s", error)
        finally:
            done()
