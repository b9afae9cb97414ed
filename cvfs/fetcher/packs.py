"""Pieces by id: from memory, else from the cache, where they are files or in a pack, else out of a pack from a mirror;
each pack brought once."""

import contextlib
import time
from functools import partial

from cvfs import pieces
from cvfs.errors import CacheError, IntegrityError
from cvfs.fetcher.ahead import ReadAhead
from cvfs.fetcher.blobs import Blobs
from cvfs.fetcher.exploding import Exploder
from cvfs.fetcher.keeping import Keeper
from cvfs.fetcher.pages import Pages
from cvfs.fetcher.shared import Shared
from cvfs.flights import Room
from cvfs.format.blob import unseal
from cvfs.model import BlobRef, Digest
from cvfs.pieces import Around, InLeaf, Pack, Piece

INLINE_BYTES = 256 << 10
"""A piece up to this size is read from the cache at once, in the loop: 70 us at most, where a thread costs 145 us."""

_INLINE_CHUNK_BYTES = 4 << 20
"""A chunk up to this size is too, where the kernel has it in memory: 0.3 ms for 1 MiB, and the publisher makes none of
more than 4. To have a thread do it makes large files come 0.7 times as fast."""

_STREAM_S = 0.005
"""From a chunk to the next one of the same file: what a reader makes of 1 MiB."""

_ONE_REQUEST_BYTES = 128 << 10
"""What the kernel asks for at once, unless a larger size was agreed on."""

_UNDER_WAY_BYTES = 32 << 20
"""Of packs, stored and plain, from when they are asked for until they are in the cache: bounds memory, whether the net
or the disk is the slower one. A guess: 16 packs of small files, 4 of large ones."""

_PACK_BYTES = 4 << 10
"""What a pack takes in memory beside its bytes. Each small change of a repository brings a pack of a few bytes."""


class Packs:
    """The pieces of one repository. Errors as of `Fetcher`.

    What is under way is each repository's own: one whose server is dead must not hold up the others.
    """

    def __init__(self, blobs: Blobs, shared: Shared, pages: Pages, keeper: Keeper, exploder: Exploder) -> None:
        self._blobs, self._cache, self._counters = blobs, blobs.cache, blobs.counters
        self._keeper, self._exploder = keeper, exploder
        self._under_way = Room(_UNDER_WAY_BYTES)
        self.packs, self.pieces, self._activity = shared.packs, shared.pieces, shared.activity
        self._streamed: Digest | None = None
        self._streamed_until = 0.0
        self.ahead = ReadAhead(blobs, pages, self.packs, self._join)

    def piece_nowait(self, piece: Piece, around: Around) -> bytes | memoryview | None:
        """The piece, if it is in memory; or in the cache, and small, or in the kernel's memory as well; else None."""
        data = self._at_once(piece, around)
        if data is None and piece.recipe is not None and INLINE_BYTES < piece.location.length <= _INLINE_CHUNK_BYTES:
            data = self._hold(piece, self._chunk_nowait(piece.recipe, piece))
        if data is not None:
            self._counters.hits += 1
        return data

    async def piece(self, piece: Piece, around: Around) -> bytes | memoryview:
        """The piece; if its pack has to be brought, what else is in it is kept as well."""
        data = self._at_once(piece, around)
        if data is not None:
            self._counters.hits += 1
        elif piece.location.length > INLINE_BYTES:
            data = await self._load(piece)
        while data is None:
            pack = await self._join(piece, around)
            if pack is not None:
                self._counters.misses += pack.was_fetched
                self._counters.hits += not pack.was_fetched
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
            self._activity.note()
            return data
        pack = self.packs.get(piece.location.pack.id)
        return None if pack is None else self._serve(pack, piece, around)

    async def _load(self, piece: Piece) -> bytes | memoryview | None:
        """The piece from the cache; read and verified once for all of the kernel's requests that it answers."""
        load = partial(self._blobs.in_thread, self._in_cache, piece)
        data = self._hold(piece, await self._blobs.flights.join(("piece", piece.key), load))
        self._counters.hits += data is not None
        return data

    def _at_once(self, piece: Piece, around: Around) -> bytes | memoryview | None:
        """The piece, if it is in memory, or small and in the cache."""
        data = self._in_memory(piece, around)
        if data is None and piece.location.length <= INLINE_BYTES:
            data = self._hold(piece, self._in_cache(piece))
        return data

    def _chunk_nowait(self, recipe: Digest, chunk: Piece) -> memoryview | None:
        """A chunk, where that takes no disk; of one file at a time: threads read others that are read at the moment."""
        if recipe != self._streamed and time.monotonic() < self._streamed_until:
            return None
        at = chunk.location
        data = self._cache.large.load_nowait(recipe, at)
        if data is not None:
            is_last = at.object_offset + at.length == chunk.size
            self._streamed, self._streamed_until = recipe, 0.0 if is_last else time.monotonic() + _STREAM_S
        return data

    def _in_cache(self, piece: Piece) -> bytes | memoryview | None:
        try:
            return pieces.load(self._cache, piece)
        except CacheError as error:
            self._blobs.degraded(error)
            return None

    async def _is_in_cache(self, piece: Piece) -> bool:
        if piece.location.length <= INLINE_BYTES:
            return self._in_cache(piece) is not None
        return await self._blobs.in_thread(self._in_cache, piece) is not None

    def _hold(self, piece: Piece, data: bytes | memoryview | None) -> bytes | memoryview | None:
        """Keep what the kernel will ask for in several requests, so that it is verified only once for them."""
        if data is not None and len(data) > _ONE_REQUEST_BYTES:
            self.pieces.put(piece.key, data, len(data))
            self._activity.note()
        return data

    def _serve(self, pack: Pack, piece: Piece, around: Around) -> memoryview:
        """The piece out of its pack. Whoever reads from memory sees to it that the cache has it, too."""
        self._activity.note()
        try:
            data = pack.cut(piece)
        except IntegrityError:
            self._counters.integrity_errors += 1
            raise
        if not pack.is_kept(piece):
            self._keeper.keep_pieces(pack, piece, around, lambda: None)
        elif pack.is_stored and isinstance(around, InLeaf):
            self._exploder.note(piece, around.page)
        if not pack.was_read:
            pack.was_read = True
            self.ahead.note_first_read(pack, around)
        return data

    async def _bring(self, piece: Piece, around: Around) -> Pack | None:
        """The piece's pack; None if the piece itself is in the cache: another process has just put it there."""
        blobs, deadline = self._blobs, self._blobs.deadline()
        ref = piece.location.pack
        pack = await self._stored(ref)
        if pack is not None:
            return pack
        with contextlib.ExitStack() as held:
            held.callback((await blobs.lock(ref, deadline)).release)
            if await self._is_in_cache(piece):
                return None
            pack = await self._stored(ref)
            if pack is not None:
                return pack
            held.callback(await blobs.make_room(self._under_way, ref, deadline))
            stored = await blobs.fetch(ref, deadline)
            plain = await blobs.in_thread(unseal, ref, stored, "a mirror")
            pack = self._hold_pack(Pack(ref, plain, was_fetched=True, is_stored=False))
            done = held.pop_all().close
            if piece.recipe is None and self._keeper.keeps_packs:
                self._keeper.keep_pack(pack, stored, done)
                self._exploder.note_kept(ref)
            else:
                self._keeper.keep_pieces(pack, piece, around, done)
        return pack

    async def _stored(self, ref: BlobRef) -> Pack | None:
        """A pack, if the cache has it as it came: one with small objects in it."""
        if not self._cache.packs.stored_bytes(ref.id):
            return None
        plain = await self._blobs.in_thread(self._load_pack, ref)
        if plain is None:
            return None
        self._exploder.note_use(ref)
        return self._hold_pack(Pack(ref, plain, was_fetched=False, is_stored=self._keeper.keeps_packs))

    def _load_pack(self, ref: BlobRef) -> bytes | None:
        try:
            stored = self._cache.packs.load(ref.id, ref.stored_size)
        except CacheError as error:
            self._blobs.degraded(error)
            return None
        return None if stored is None else unseal(ref, stored, "the cache")

    def _hold_pack(self, pack: Pack) -> Pack:
        self.packs.put(pack.ref.id, pack, len(pack.plain) + _PACK_BYTES)
        self._activity.note()
        self._exploder.activity.note()
        return pack
