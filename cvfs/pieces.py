"""Pieces: what a pack is made of, as far as a leaf knows. Each is verified by an id of its own before it is used.

That the pack's hash was right proves only that a publisher wrote it. The cache is shared by repositories whose
publishers need not trust each other, so what is kept under a content id must have it.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import NamedTuple, Protocol

from cvfs.cache import Cache
from cvfs.cache.large import recipe_of
from cvfs.errors import IntegrityError
from cvfs.format.blob import digest
from cvfs.format.locations import WireContent, resolve
from cvfs.format.pages import Leaf, Page
from cvfs.missing import Missing
from cvfs.model import BlobRef, Content, Digest, Entry, Location

_BATCH_BYTES = 2 << 20
"""Most packs of small files are one batch."""


class Piece(NamedTuple):
    """A whole small object, or one chunk of a large one: `location.length` bytes whose BLAKE3 is `id`.

    `recipe` and `size` are those of the large object that the chunk belongs to; None and the length otherwise.
    """

    id: Digest
    location: Location
    recipe: Digest | None
    size: int

    @property
    def key(self) -> Hashable:
        """Where it is in the cache. One chunk in two files, or twice in one, is stored in each place."""
        return self.id if self.recipe is None else (self.recipe, self.location.object_offset)


def pieces_of(entry: Entry, content: Content) -> Iterator[Piece]:
    """The pieces of one object, but for those that location pages name."""
    recipe = None
    for location in content.locations:
        if not location.chunk_id:
            yield Piece(Digest(entry.content_id), location, None, entry.size)
            continue
        recipe = recipe or recipe_of(entry, content)
        yield Piece(Digest(location.chunk_id), location, recipe, entry.size)


def pieces_in_pack(leaf: Leaf, number: int) -> Iterator[Piece]:
    """All pieces that the records of `leaf` have in pack number `number` of its list."""
    pack = leaf.packs[number]
    for group in leaf.groups:
        for entry, wire in zip(group.entries, group.contents, strict=True):
            if wire is None or not _uses(wire, number):
                continue
            yield from (piece for piece in pieces_of(entry, resolve(wire, leaf.packs)) if piece.location.pack == pack)


def _uses(wire: WireContent, number: int) -> bool:
    locations = wire.locations
    if len(locations) == 1:  # as nearly all have
        return locations[0].pack == number
    return any(location.pack == number for location in locations)


class Around(Protocol):
    """What is stored beside a piece, as far as its reader knows."""

    def same_pack(self) -> Sequence[Piece]:
        """The pieces in its pack."""

    def previous_pack(self) -> BlobRef | None:
        """The pack that comes before its own in the order of the tree."""

    def next_pack(self) -> "tuple[Piece, Around] | None":
        """A piece in the pack that comes after its own, and what is around that."""


class InLeaf(NamedTuple):
    """Around a piece in `pack`: what the leaf `page` lists, if `load` has it in memory."""

    load: Callable[[BlobRef], Page]
    page: BlobRef
    pack: BlobRef

    def same_pack(self) -> Sequence[Piece]:
        leaf = self._leaf()
        return [] if leaf is None else list(pieces_in_pack(leaf, leaf.packs.index(self.pack)))

    def previous_pack(self) -> BlobRef | None:
        leaf = self._leaf()
        number = 0 if leaf is None else leaf.packs.index(self.pack)
        return leaf.packs[number - 1] if leaf is not None and number else None

    def next_pack(self) -> tuple[Piece, Around] | None:
        leaf = self._leaf()
        number = 0 if leaf is None else leaf.packs.index(self.pack) + 1
        if leaf is None or number == len(leaf.packs):
            return None
        return next(pieces_in_pack(leaf, number)), self._replace(pack=leaf.packs[number])

    def _leaf(self) -> Leaf | None:
        try:
            leaf = self.load(self.page)
        except Missing:
            return None
        return leaf if isinstance(leaf, Leaf) else None


class InList(NamedTuple):
    """Around a chunk in `pack`: the `chunks` of one location page."""

    chunks: Callable[[], Sequence[Piece]]
    pack: BlobRef

    def same_pack(self) -> Sequence[Piece]:
        return [chunk for chunk in self.chunks() if chunk.location.pack == self.pack]

    def previous_pack(self) -> BlobRef | None:
        before = list(takewhile(lambda pack: pack != self.pack, (chunk.location.pack for chunk in self.chunks())))
        return before[-1] if before else None

    def next_pack(self) -> tuple[Piece, Around] | None:
        chunks = iter(self.chunks())
        own = next((chunk for chunk in chunks if chunk.location.pack == self.pack), None)
        after = next((chunk for chunk in chunks if own and chunk.location.pack != self.pack), None)
        return after and (after, self._replace(pack=after.location.pack))


class Pack:
    """The plain bytes of a pack, in memory; which of its pieces were verified, and which the cache was given.

    `was_fetched` says whether a mirror had to be asked; `is_stored` that the cache was given the pack as it came, and
    with it the small objects in it, `came_ahead` that it was brought before anyone asked for it.
    """

    def __init__(self, ref: BlobRef, plain: bytes, *, was_fetched: bool, is_stored: bool) -> None:
        self.ref, self.plain = ref, plain
        self.was_fetched, self.is_stored = was_fetched, is_stored
        self.was_read = self.came_ahead = False
        self.stores_under_way = 0
        """How often the cache is just being given something of it."""
        self._right: set[tuple[Digest, int, int]] = set()
        self._kept: set[Hashable] = set()

    def cut(self, piece: Piece) -> memoryview:
        """The piece. Raises IntegrityError unless it is what its id names."""
        at = piece.location
        data = memoryview(self.plain)[at.pack_offset : at.pack_offset + at.length]
        known = piece.id, at.pack_offset, at.length
        if known not in self._right:
            check_piece(piece, data)
            self._right.add(known)
        return data

    def is_kept(self, piece: Piece) -> bool:
        return (self.is_stored and piece.recipe is None) or piece.key in self._kept

    @property
    def was_taken(self) -> bool:
        """Whether the cache has what it was given of it, and that is not nothing."""
        return not self.stores_under_way and (self.is_stored or bool(self._kept))

    def begin_to_keep(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Those of `pieces` that the cache was not given yet: it is given them now."""
        left = {piece.key: piece for piece in pieces if not self.is_kept(piece)}
        self._kept.update(left)
        return list(left.values())

    def fail_to_keep(self, pieces: Iterable[Piece]) -> None:
        """The cache did not take these: they may be tried again."""
        self._kept.difference_update(piece.key for piece in pieces)


def check_piece(piece: Piece, data: memoryview) -> None:
    """Raise IntegrityError unless `data` is what the piece's id names."""
    got = digest(data)
    if got != piece.id:
        raise IntegrityError(piece.id.hex(), got.hex(), f"pack {piece.location.pack.id.hex()}")


def load(cache: Cache, piece: Piece) -> bytes | memoryview | None:
    """The piece from the cache, verified; None if it is not there. Raises CacheError."""
    if piece.recipe is None:
        return cache.objects.load(piece.id, piece.size)
    return cache.large.load(piece.recipe, piece.location)


def store(cache: Cache, pieces: Iterable[Piece], plain: bytes) -> list[IntegrityError]:
    """Put the pieces of one pack into the cache; returns what was wrong with those that were left out.

    Raises CacheError: the disk failed; the pieces before that are stored.
    """
    right: dict[Hashable, tuple[Piece, memoryview]] = {}
    wrong = []
    for piece in pieces:
        if piece.key in right or _is_there(cache, piece):
            continue
        at = piece.location
        data = memoryview(plain)[at.pack_offset : at.pack_offset + at.length]
        try:
            check_piece(piece, data)
        except IntegrityError as error:
            wrong.append(error)
            continue
        right[piece.key] = piece, data
    for batch in _batches(list(right.values())):
        with cache.quota.reserve([len(data) for _, data in batch]) as reservation:
            for piece, data in batch:
                reservation.fill(len(data), partial(_put, cache, piece, data))
    return wrong


def _is_there(cache: Cache, piece: Piece) -> bool:
    """Whether the cache has a piece, as it should be: to store it once more would count it twice."""
    if piece.recipe is not None and not cache.large.has_data(piece.recipe, piece.location):
        return False
    return load(cache, piece) is not None


def _batches(pieces: list[tuple[Piece, memoryview]]) -> Iterator[list[tuple[Piece, memoryview]]]:
    """Runs for which space is reserved at once: so large that it costs nothing, so small that they fit in any cache."""
    batch: list[tuple[Piece, memoryview]] = []
    size = 0
    for piece, data in pieces:
        if batch and size + len(data) > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append((piece, data))
        size += len(data)
    if batch:
        yield batch


def _put(cache: Cache, piece: Piece, data: memoryview) -> None:
    if piece.recipe is None:
        cache.objects.store(piece.id, data)
    else:
        cache.large.store(piece.recipe, piece.size, piece.location, data)
