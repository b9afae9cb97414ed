"""Packs being filled: objects and chunks side by side in the order they come, cut by size alone."""

from concurrent.futures import Future
from typing import NamedTuple, Protocol

from cvfs.limits import MIB
from cvfs.model import NO_CONTENT, BlobRef, Content, Digest, Entry, Location
from publisher.state.pieces import Piece

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
