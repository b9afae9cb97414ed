"""The bytes of one regular file."""

from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from operator import attrgetter
from typing import Final

import trio

from cvfs.cache.large import recipe_of
from cvfs.errors import FormatError
from cvfs.fetcher import Fetcher
from cvfs.format.locations import check_run
from cvfs.format.pages import LocationPage, Page
from cvfs.format.tree.lookup import Found
from cvfs.model import Digest, Location
from cvfs.pieces import Around, InLeaf, InList, Piece

Parts = Sequence[bytes | memoryview]
"""The bytes of a range, in order."""

_Covered = tuple[int, memoryview]
"""What a chunk has of a range: where it begins in the file, and its bytes."""

_OFFSET = attrgetter("object_offset")

_SPELL: Final = 64
"""Chunks that are read in the loop before others have their turn: a publisher may make a million of them out of what
the kernel asks for at once. 64 that are cached take 1 to 5 ms."""

_FEW_CHUNKS: Final = 8
"""That are read without a turn for anybody else. What the kernel asks for at once is mostly in two of them."""

_MOST_PARTS: Final = 512
"""That a read is given back in. writev(2) takes 1024, with the header of a reply and the zeros of holes among them."""


class File:
    """The content of a record, read piece by piece. It stays readable as long as its bytes can be had, whatever
    revision is current.

    It holds on to no page: a thousand open files must not keep a thousand pages in memory.
    """

    def __init__(self, found: Found, fetcher: Fetcher) -> None:
        self.entry = found.entry
        self._page = found.page
        self._fetcher = fetcher
        self._content = found.content
        self._whole = self._whole_piece()
        self._recipe = None if self._whole else recipe_of(self.entry, self._content)
        self._page_offsets = [] if self._whole else [offset for offset, _ in self._content.location_pages]

    @property
    def weight(self) -> int:
        """About how many locations' worth of memory it takes."""
        return 1 + len(self._content.locations) + len(self._page_offsets)

    def cached_percent(self) -> int:
        """How much of it is in the cache, by the space that it takes there; nothing is verified, and nothing read."""
        if self._whole and self._fetcher.has_pack(self._whole.location.pack.id):
            return 100
        listed = sum(location.length for location in self._content.locations)
        size = self.entry.size if self._page_offsets else listed
        cached = self._fetcher.cached_bytes(Digest(self.entry.content_id), self._recipe)
        return min(100, 100 * cached // size) if size else 100

    async def parts_in_cache(self) -> AsyncIterator[tuple[Digest, Location, bool]]:
        """All that the file is made of: the name of its file in the cache, a part, and whether the cache has that part.
        Nothing is verified, and no content is read. Raises what reading metadata raises."""
        if self._whole is not None:
            at = self._whole.location
            yield self._whole.id, at, self._fetcher.keeps_object(self._whole.id, at)
            return
        assert self._recipe is not None
        for number in range(len(self._page_offsets) or 1):
            for count, at in enumerate(await self._locations(number), 1):
                if count % _SPELL == 0:
                    await trio.lowlevel.checkpoint()
                yield self._recipe, at, self._fetcher.keeps_chunk(self._recipe, at)

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """`length` bytes from `offset` on, fewer at the end of the file. Raises what `Fetcher.piece` does."""
        parts = await self.read_parts(offset, length)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_parts_nowait(self, offset: int, length: int) -> Parts | None:
        """As `read_parts`, where that needs no wait, else None: of what is in memory, or in the cache and small, or a
        few chunks that the kernel has in memory. Raises PageMissing."""
        end = min(offset + length, self.entry.size)
        if offset >= end:
            return ()
        if self._whole is not None:
            whole = self._fetcher.piece_nowait(self._whole, self._in_leaf(self._whole.location))
            return None if whole is None else (whole[offset:end],)
        covered: list[_Covered] = []
        for number in self._page_numbers(offset, end):
            locations = self._locations_nowait(number)
            for location in _overlapping(locations, offset, end):
                if len(covered) == _FEW_CHUNKS:
                    return None
                chunk = self._fetcher.piece_nowait(self._chunk(location), self._around(location, locations))
                if chunk is None:
                    return None
                covered.append(_cut(location, chunk, offset, end))
        return _with_holes(covered, offset, end)

    async def read_parts(self, offset: int, length: int) -> Parts:
        """As `read`, in the parts in which the bytes are in memory, unless they are very many."""
        end = min(offset + length, self.entry.size)
        if offset >= end:
            return ()
        if self._whole is not None:
            return ((await self._fetcher.piece(self._whole, self._in_leaf(self._whole.location)))[offset:end],)
        covered: list[_Covered] = []
        for number in self._page_numbers(offset, end):
            locations = await self._locations(number)
            for location in _overlapping(locations, offset, end):
                if len(covered) % _SPELL == _SPELL - 1:
                    await trio.lowlevel.checkpoint()
                chunk = await self._fetcher.piece(self._chunk(location), self._around(location, locations))
                covered.append(_cut(location, chunk, offset, end))
        return _with_holes(covered, offset, end)

    def _whole_piece(self) -> Piece | None:
        """The one piece of a small file."""
        locations = self._content.locations
        if len(locations) != 1 or locations[0].chunk_id:
            return None
        return Piece(Digest(self.entry.content_id), locations[0], None, self.entry.size)

    def _chunk(self, location: Location) -> Piece:
        assert self._recipe is not None
        return Piece(Digest(location.chunk_id), location, self._recipe, self.entry.size)

    def _around(self, location: Location, locations: Sequence[Location]) -> Around:
        """What is stored beside a chunk, as far as the page knows that lists it."""
        if self._page_offsets:
            return InList(lambda: list(map(self._chunk, locations)), location.pack)
        return self._in_leaf(location)

    def _in_leaf(self, location: Location) -> Around:
        return InLeaf(self._fetcher.page_nowait, self._page, location.pack)

    def _page_numbers(self, offset: int, end: int) -> range:
        """The numbers of the location pages that speak of the range; 0 alone where the record itself says it all."""
        if not self._page_offsets:
            return range(1)
        return range(max(bisect_right(self._page_offsets, offset) - 1, 0), bisect_right(self._page_offsets, end - 1))

    async def _locations(self, number: int) -> Sequence[Location]:
        """What location page `number` lists, or the record itself. Raises FormatError: the page is not what it says."""
        if not self._page_offsets:
            return self._content.locations
        return self._listed(number, await self._fetcher.page(self._content.location_pages[number][1]))

    def _locations_nowait(self, number: int) -> Sequence[Location]:
        """As `_locations`, or raises PageMissing."""
        if not self._page_offsets:
            return self._content.locations
        return self._listed(number, self._fetcher.page_nowait(self._content.location_pages[number][1]))

    def _listed(self, number: int, page: Page) -> Sequence[Location]:
        start, ref = self._content.location_pages[number]
        if not isinstance(page, LocationPage):
            raise FormatError(f"page {ref.id.hex()} is not a location page")
        check_run(page.locations, start, ([*self._page_offsets, self.entry.size])[number + 1])
        return page.locations


def _cut(location: Location, chunk: bytes | memoryview, offset: int, end: int) -> _Covered:
    """What a chunk has of the range from `offset` to `end`, of which it has some."""
    start = location.object_offset
    first, last = max(offset, start), min(end, start + location.length)
    return first, memoryview(chunk)[first - start : last - start]


def _with_holes(covered: Sequence[_Covered], offset: int, end: int) -> Parts:
    """The bytes of a range. What no chunk covers is zeros."""
    parts: list[bytes | memoryview] = []
    at = offset
    for start, part in covered:
        if start > at:
            parts.append(bytes(start - at))
        parts.append(part)
        at = start + len(part)
    if at < end:
        parts.append(bytes(end - at))
    return parts if len(parts) <= _MOST_PARTS else [b"".join(parts)]


def _overlapping(locations: Sequence[Location], offset: int, end: int) -> Iterator[Location]:
    """Those of `locations`, which are in order and apart, that have bytes between `offset` and `end`."""
    for number in range(max(bisect_right(locations, offset, key=_OFFSET) - 1, 0), len(locations)):
        location = locations[number]
        if location.object_offset >= end:
            return
        if offset < location.object_offset + location.length:
            yield location
