"""The bytes of one regular file."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from cvfs.cache.large import recipe_of
from cvfs.errors import FormatError
from cvfs.fetcher import Fetcher
from cvfs.format.pages import Leaf, LocationPage
from cvfs.format.tree.lookup import Found
from cvfs.model import BlobRef, Digest, Location
from cvfs.pieces import Piece, pieces_in_pack, pieces_of


class File:
    """The content of a record, read piece by piece. It stays readable as long as its bytes can be had, whatever
    revision is current."""

    def __init__(self, found: Found, fetcher: Fetcher) -> None:
        self.entry = found.entry
        self._leaf: Leaf = found.leaf
        self._fetcher = fetcher
        self._content = found.record.content
        self._pieces = list(pieces_of(self.entry, self._content))
        self._page_offsets = [offset for offset, _ in self._content.location_pages]

    def read_nowait(self, offset: int, length: int) -> bytes | memoryview | None:
        """As `read`, where that needs no wait: a small file that is in memory or in the cache; else None."""
        if len(self._pieces) != 1 or self._pieces[0].recipe is not None:
            return None if offset < self.entry.size else b""
        data = self._fetcher.piece_nowait(self._pieces[0])
        return None if data is None else data[offset : offset + length]

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """`length` bytes from `offset` on, fewer at the end of the file. Raises what `Fetcher.piece` does."""
        end = min(offset + length, self.entry.size)
        if offset >= end:
            return b""
        if len(self._pieces) == 1 and self._pieces[0].recipe is None:
            return (await self._piece(self._pieces[0]))[offset:end]
        return await self._assemble(offset, end)

    async def _assemble(self, offset: int, end: int) -> bytes | memoryview:
        """The bytes from `offset` to `end` of a chunked object; what no chunk covers is zeros."""
        data = bytearray(end - offset)
        for start in self._page_starts(offset, end):
            for piece in _overlapping(await self._pieces_at(start), offset, end):
                at = piece.location.object_offset
                first, last = max(offset, at), min(end, at + piece.location.length)
                chunk = await self._piece(piece)
                data[first - offset : last - offset] = chunk[first - at : last - at]
        return bytes(data)

    async def _piece(self, piece: Piece) -> bytes | memoryview:
        return await self._fetcher.piece(piece, lambda: self._neighbours(piece))

    def _neighbours(self, piece: Piece) -> list[Piece]:
        pack = piece.location.pack
        if piece.recipe is None or not self._page_offsets:
            return pieces_in_pack(self._leaf, pack)
        return [piece]

    def _page_starts(self, offset: int, end: int) -> Iterator[int]:
        """The numbers of the location pages that speak of the range; 0 alone where the record itself says it all."""
        if not self._page_offsets:
            yield 0
            return
        yield from range(max(bisect_right(self._page_offsets, offset) - 1, 0), bisect_right(self._page_offsets, end - 1))

    async def _pieces_at(self, number: int) -> Sequence[Piece]:
        if not self._page_offsets:
            return self._pieces
        return self._pieces_of_page(await self._location_page(self._content.location_pages[number][1]))

    async def _location_page(self, ref: BlobRef) -> Sequence[Location]:
        page = await self._fetcher.page(ref)
        if not isinstance(page, LocationPage):
            raise FormatError(f"page {ref.id.hex()} is not a location page")
        return page.locations

    def _pieces_of_page(self, locations: Sequence[Location]) -> list[Piece]:
        recipe = recipe_of(self.entry, self._content)
        return [Piece(Digest(at.chunk_id), at, recipe, self.entry.size) for at in locations]


def _overlapping(pieces: Sequence[Piece], offset: int, end: int) -> Iterator[Piece]:
    for piece in pieces:
        at = piece.location
        if at.object_offset < end and offset < at.object_offset + at.length:
            yield piece
