"""Packs being filled: objects and chunks side by side in the order they come, cut by size alone."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import zstandard

from cvfs.format.blob import seal
from cvfs.limits import MIB
from cvfs.model import NO_CONTENT, BlobRef, Content, Digest, Entry, Location
from publisher.state.index import Piece, Pieces

OBJECT_PACK_BYTES = MIB
"""Plain bytes at which a pack of small objects is full: one request brings 100 to 300 of them, well compressed."""

CHUNK_PACK_BYTES = 4 * MIB

MAX_SMALL_BYTES = 4 * MIB
"""Above it, a file is cut into chunks."""

MAX_SPAN = 1 << 16
"""Paths that may follow the first object of a pack before it is cut anyway: their records wait for it in memory."""


class Sealed(NamedTuple):
    """A pack as it was stored. `is_new`: the store did not have it."""

    ref: BlobRef
    is_new: bool


class Pack:
    """A pack that is being filled, then sealed, then stored as `ref`."""

    __slots__ = ("future", "members", "number", "parts", "ref", "size_bytes")

    def __init__(self, number: int) -> None:
        self.number = number
        self.parts: list[bytes | memoryview] = []
        self.members: list[tuple[Digest, int, int]] = []
        self.size_bytes = 0
        self.future: Future[Sealed] | None = None
        self.ref: BlobRef | None = None

    def add(self, content_id: Digest, data: bytes | memoryview) -> "InPack":
        offset = self.size_bytes
        self.parts.append(data)
        self.members.append((content_id, offset, len(data)))
        self.size_bytes = offset + len(data)
        return InPack(self, offset, len(data))


class Place(Protocol):
    """Where the content of a file goes."""

    def resolve(self, entry: Entry) -> Content | None:
        """Where it is; None until its packs are stored."""

    @property
    def unfinished(self) -> "Pack | None":
        """A pack that has to be stored before `resolve` can answer."""


class InPack:
    """A place in a pack."""

    __slots__ = ("length", "offset", "pack")

    def __init__(self, pack: Pack, offset: int, length: int) -> None:
        self.pack = pack
        self.offset = offset
        self.length = length

    @classmethod
    def stored(cls, piece: Piece) -> "InPack":
        pack = Pack(0)
        pack.ref = piece.pack
        return cls(pack, piece.offset, piece.length)

    def resolve(self, entry: Entry) -> Content | None:
        ref = self.pack.ref
        return None if ref is None else Content((Location(0, entry.size, ref, self.offset, b""),))

    @property
    def unfinished(self) -> Pack | None:
        return self.pack if self.pack.ref is None else None


class Nowhere:
    """The place of no bytes."""

    def resolve(self, entry: Entry) -> Content | None:
        return NO_CONTENT

    @property
    def unfinished(self) -> None:
        return None


class Packer:
    """Fills one pack after another. `submit` is given each full one."""

    def __init__(self, full_bytes: int, max_bytes: int, submit: Callable[[Pack], None]) -> None:
        self._full_bytes = full_bytes
        self._max_bytes = max_bytes
        self._submit = submit
        self._pack: Pack | None = None

    def add(self, content_id: Digest, data: bytes | memoryview, number: int) -> InPack:
        """The place of `data`, which belongs to path number `number`: what goes where depends on nothing else."""
        self.cut_before(number)
        pack = self._pack
        if pack is not None and pack.size_bytes + len(data) > self._max_bytes:
            self.cut()
            pack = None
        if pack is None:
            pack = self._pack = Pack(number)
        place = pack.add(content_id, data)
        if pack.size_bytes >= self._full_bytes:
            self.cut()
        return place

    def began_before(self, number: int) -> bool:
        return self._pack is not None and self._pack.number <= number

    def cut_before(self, number: int) -> None:
        """Cut if the open pack began too many paths before path number `number`."""
        if self.began_before(number - MAX_SPAN):
            self.cut()

    def cut(self) -> None:
        if self._pack is not None:
            pack, self._pack = self._pack, None
            self._submit(pack)


class Shelf:
    """Objects, or chunks: what is stored, what is about to be, and the pack that is being filled with what is new."""

    def __init__(self, pieces: Pieces, packer: Packer) -> None:
        self._pieces = pieces
        self._pending: dict[Digest, InPack] = {}
        self.packer = packer

    def place(self, content_id: Digest, data: bytes | memoryview, number: int) -> tuple["InPack", bool]:
        """Where `data` is or will be, and whether it is new. `number` is that of the path it belongs to."""
        place = self._pending.get(content_id)
        if place is not None:
            return place, False
        piece = self._pieces.find(content_id)
        if piece is not None:
            return InPack.stored(piece), False
        self._pending[content_id] = place = self.packer.add(content_id, data, number)
        return place, True

    def settle(self, pack: Pack, ref: BlobRef) -> None:
        """Take note that one of the packs has been stored."""
        for content_id, offset, length in pack.members:
            del self._pending[content_id]
            self._pieces.add(content_id, Piece(ref, offset, length))
        pack.members = []


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
