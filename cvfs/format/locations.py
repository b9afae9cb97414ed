"""Where the bytes of objects are, as pages say it (docs/format.md, section 6).

A page lists the packs it speaks of once; a location names its pack by its place in that list.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from cvfs.errors import FormatError
from cvfs.format.blob import check_ref
from cvfs.format.entries import ascending
from cvfs.limits import MAX_BLOB_BYTES, MAX_LOCATIONS, MAX_OBJECT_BYTES
from cvfs.model import DIGEST_SIZE, NO_CONTENT, BlobRef, Content, Entry, Location

_Offset = Annotated[int, Meta(ge=0, le=MAX_OBJECT_BYTES)]
_Length = Annotated[int, Meta(ge=1, le=MAX_BLOB_BYTES)]


class WireLocation(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A `Location` whose pack is number `pack` of its page's list."""

    object_offset: _Offset
    length: _Length
    pack: Annotated[int, Meta(ge=0)]
    pack_offset: Annotated[int, Meta(ge=0, le=MAX_BLOB_BYTES)]
    chunk_id: Annotated[bytes, Meta(max_length=DIGEST_SIZE)]


class WireContent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A `Content` of wire locations."""

    locations: Annotated[tuple[WireLocation, ...], Meta(max_length=MAX_LOCATIONS)]
    location_pages: Annotated[tuple[tuple[_Offset, BlobRef], ...], Meta(max_length=MAX_LOCATIONS)]


class PackTable:
    """The list of packs of a page that is being written: each once, in the order of first use."""

    def __init__(self) -> None:
        self._numbers: dict[BlobRef, int] = {}
        self._last: tuple[BlobRef | None, int] = (None, 0)

    @property
    def packs(self) -> tuple[BlobRef, ...]:
        return tuple(self._numbers)

    def content(self, content: Content) -> WireContent | None:
        if not (content.locations or content.location_pages):
            return None
        return WireContent(tuple(map(self.location, content.locations)), content.location_pages)

    def location(self, location: Location) -> WireLocation:
        pack, number = self._last
        # Neighbours are mostly in one pack, so mostly the reference need not be hashed.
        if location.pack is not pack:
            number = self._numbers.setdefault(location.pack, len(self._numbers))
            self._last = location.pack, number
        return WireLocation(location.object_offset, location.length, number, location.pack_offset, location.chunk_id)


class PackTableCheck:
    """The list of packs of a page that is being read, held against its use, location by location."""

    def __init__(self, packs: tuple[BlobRef, ...]) -> None:
        for pack in packs:
            check_ref(pack)
        if len(set(packs)) != len(packs):
            raise FormatError("a page lists a pack twice")
        self._plain_sizes = [pack.plain_size for pack in packs]
        self._used = 0

    def finish(self) -> None:
        if self._used != len(self._plain_sizes):
            raise FormatError("a page lists packs that it does not use")

    def content(self, entry: Entry, content: WireContent) -> None:
        """Raise FormatError unless `content` can be where the bytes of `entry` are."""
        locations = content.locations
        # Only a regular file has a content id.
        if not entry.content_id or bool(locations) == bool(content.location_pages):
            raise FormatError(f"entry {entry.name!r}: impossible content")
        if not locations:
            _check_location_pages(entry, content.location_pages)
        elif len(locations) > 1 or locations[0].chunk_id:
            self.chunks(locations, entry.size)
        else:
            whole = locations[0]
            if whole.object_offset or whole.length != entry.size:
                raise FormatError(f"entry {entry.name!r}: its location is not the whole object")
            self._use(whole)

    def chunks(self, locations: tuple[WireLocation, ...], size: int) -> None:
        """The locations of the chunks of an object of `size` bytes: in order, apart, each with its chunk id."""
        end = 0
        for location in locations:
            self._use(location)
            if location.object_offset < end or len(location.chunk_id) != DIGEST_SIZE:
                raise FormatError("the chunks of an object overlap, or have no ids")
            end = location.object_offset + location.length
        if end > size:
            raise FormatError("a chunk beyond the end of its object")

    def _use(self, location: WireLocation) -> None:
        """One legal order for the list: that in which the locations first name its packs."""
        number = location.pack
        if number >= self._used:
            if number > self._used or number >= len(self._plain_sizes):
                raise FormatError("a page does not list its packs in the order of their use")
            self._used += 1
        if location.pack_offset + location.length > self._plain_sizes[number]:
            raise FormatError("a location beyond the end of its pack")


def _check_location_pages(entry: Entry, pages: tuple[tuple[int, BlobRef], ...]) -> None:
    offsets = [offset for offset, _ in pages]
    if not ascending(offsets) or offsets[-1] >= entry.size:
        raise FormatError(f"entry {entry.name!r}: its location pages are not in order, or beyond its end")
    for _, page in pages:
        check_ref(page)


def check_run(locations: tuple[Location, ...], start: int, end: int) -> None:
    """Raise FormatError unless the locations of a location page are what the entry says that names it: the first
    begins at `start`, and all end before `end`, which is where the next page starts, or the object ends."""
    last = locations[-1]
    if locations[0].object_offset != start or last.object_offset + last.length > end:
        raise FormatError("a location page is not what its entry says")


def resolve(content: WireContent | None, packs: tuple[BlobRef, ...]) -> Content:
    """The content with its packs by reference."""
    if content is None:
        return NO_CONTENT
    locations = content.locations
    if len(locations) == 1:  # as nearly all have
        return Content((resolve_location(locations[0], packs),), content.location_pages)
    return Content(tuple([resolve_location(location, packs) for location in locations]), content.location_pages)


def resolve_location(wire: WireLocation, packs: tuple[BlobRef, ...]) -> Location:
    return Location(wire.object_offset, wire.length, packs[wire.pack], wire.pack_offset, wire.chunk_id)
