"""Where the bytes of objects are, as pages say it (docs/format.md, section 6).

A page lists the packs it speaks of once; a location names its pack by its place in that list.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from cvfs.errors import FormatError
from cvfs.format.blob import check_ref
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

    @property
    def packs(self) -> tuple[BlobRef, ...]:
        return tuple(self._numbers)

    def content(self, content: Content) -> WireContent | None:
        if content == NO_CONTENT:
            return None
        return WireContent(tuple(map(self.location, content.locations)), content.location_pages)

    def location(self, location: Location) -> WireLocation:
        number = self._numbers.setdefault(location.pack, len(self._numbers))
        return WireLocation(location.object_offset, location.length, number, location.pack_offset, location.chunk_id)


class PackTableCheck:
    """The list of packs of a page that is being read, held against its use, location by location."""

    def __init__(self, packs: tuple[BlobRef, ...]) -> None:
        for pack in packs:
            check_ref(pack)
        if len(set(packs)) != len(packs):
            raise FormatError("a page lists a pack twice")
        self._packs = packs
        self._used = 0

    def finish(self) -> None:
        if self._used != len(self._packs):
            raise FormatError("a page lists packs that it does not use")

    def content(self, entry: Entry, content: WireContent | None) -> None:
        """Raise FormatError unless `content` can be where the bytes of `entry` are."""
        if content is None:
            return
        locations = content.locations
        if not entry.is_regular or bool(locations) == bool(content.location_pages):
            raise FormatError(f"entry {entry.name!r}: impossible content")
        for offset, page in content.location_pages:
            check_ref(page)
            if offset >= entry.size:
                raise FormatError(f"entry {entry.name!r}: a location page beyond its end")
        if len(locations) == 1 and not locations[0].chunk_id:
            self._whole(entry, locations[0])
        elif locations:
            self.chunks(locations, entry.size)

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

    def _whole(self, entry: Entry, location: WireLocation) -> None:
        self._use(location)
        if location.object_offset or location.length != entry.size:
            raise FormatError(f"entry {entry.name!r}: its location is not the whole object")

    def _use(self, location: WireLocation) -> None:
        """One legal order for the list: that in which the locations first name its packs."""
        if location.pack >= self._used:
            if location.pack > self._used or location.pack >= len(self._packs):
                raise FormatError("a page does not list its packs in the order of their use")
            self._used += 1
        if location.pack_offset + location.length > self._packs[location.pack].plain_size:
            raise FormatError("a location beyond the end of its pack")


def resolve(content: WireContent | None, packs: tuple[BlobRef, ...]) -> Content:
    """The content with its packs by reference."""
    if content is None:
        return NO_CONTENT
    return Content(tuple(resolve_location(location, packs) for location in content.locations), content.location_pages)


def resolve_location(wire: WireLocation, packs: tuple[BlobRef, ...]) -> Location:
    return Location(wire.object_offset, wire.length, packs[wire.pack], wire.pack_offset, wire.chunk_id)


