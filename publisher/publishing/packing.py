"""Packs on their way into the store: compressed, hashed and written in worker threads, settled in order."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

import zstandard

from cvfs.format.blob import seal
from cvfs.model import BlobRef
from publisher.packs.pack import CHUNK_PACK_BYTES, OBJECT_PACK_BYTES, Pack, Sealed
from publisher.packs.shelf import Packer, Shelf
from publisher.publishing.report import Counts
from publisher.state.index import Index

PutPack = Callable[[BlobRef, bytes], bool]
"""Stores a pack; false if it was there. Called in worker threads."""


class Sealer:
    """Compresses, in any thread."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._local = threading.local()

    def __call__(self, plain: bytes) -> tuple[BlobRef, bytes]:
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(level=self._level)
        return seal(plain, compressor)


class Packing:
    """Two shelves, and what leaves them. At most `limit` packs are on their way at a time."""

    def __init__(
        self, index: Index, put_pack: PutPack, level: int, executor: Executor, limit: int, counts: Counts
    ) -> None:
        self._blobs = index.blobs
        self._put_pack = put_pack
        self._seal = Sealer(level)
        self._executor = executor
        self._limit = limit
        self._on_their_way: deque[tuple[Pack, Shelf]] = deque()
        self.counts = counts
        self.objects = Shelf(
            index.objects, Packer(OBJECT_PACK_BYTES, 2 * OBJECT_PACK_BYTES, lambda pack: self._send(pack, self.objects))
        )
        self.chunks = Shelf(
            index.chunks, Packer(CHUNK_PACK_BYTES, CHUNK_PACK_BYTES, lambda pack: self._send(pack, self.chunks))
        )

    def cut(self) -> None:
        self.objects.packer.cut()
        self.chunks.packer.cut()

    def wait_for(self, pack: Pack) -> bool:
        """Wait until a pack is stored, and those before it; false at once if it is still being filled."""
        if pack.ref is None and pack.future is None:
            return False
        while pack.ref is None:
            self._settle()
        return True

    def _send(self, pack: Pack, shelf: Shelf) -> None:
        while len(self._on_their_way) >= self._limit:
            self._settle()
        parts, pack.parts = pack.parts, []
        pack.future = self._executor.submit(self._store, parts)
        self._on_their_way.append((pack, shelf))

    def settle_done(self) -> None:
        """Take note of the packs that have been stored meanwhile."""
        while self._on_their_way:
            future = self._on_their_way[0][0].future
            if future is None or not future.done():
                return
            self._settle()

    def _store(self, parts: list[bytes | memoryview]) -> Sealed:
        ref, stored = self._seal(b"".join(parts))
        return Sealed(ref, self._put_pack(ref, stored))

    def _settle(self) -> None:
        pack, shelf = self._on_their_way.popleft()
        assert pack.future is not None
        ref, is_new = pack.future.result()
        self._blobs.add(ref)
        pack.ref, pack.future = ref, None
        shelf.settle(pack, ref)
        if not is_new:  # left by a publisher that died
            self.counts.dedup_bytes += ref.plain_size
        else:
            self.counts.packs += 1
            self.counts.packed_bytes += ref.plain_size
            self.counts.packs_stored_bytes += ref.stored_size
