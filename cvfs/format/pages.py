"""Pages, the nodes of the metadata tree: bytes <-> values (docs/format.md, section 4).

A page is refused unless it is exactly what the encoder here would have written.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from operator import attrgetter
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from cvfs.errors import FormatError
from cvfs.format.blob import check_ref
from cvfs.format.codec import decode, decoder_of, encode
from cvfs.format.entries import ascending, check_directory, check_entry, check_names
from cvfs.format.locations import PackTable, PackTableCheck, WireContent, WireLocation, resolve, resolve_location
from cvfs.limits import (
    MAX_LEVEL,
    MAX_LOCATIONS,
    MAX_NAME_BYTES,
    MAX_OBJECT_BYTES,
    MAX_PAGE_BYTES,
    MAX_PATH_BYTES,
)
from cvfs.model import BlobRef, Content, Entry, Location, Record

_Directory = Annotated[bytes, Meta(max_length=MAX_PATH_BYTES)]
_Total = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Key(NamedTuple):
    """The place of a record in the tree: `order(directory)`, then the name, both compared as bytes."""

    order: bytes
    name: bytes


def order(directory: bytes) -> bytes:
    """`directory` with each slash made a NUL: sorted so, all that is below a path is one contiguous run of keys."""
    return directory.replace(b"/", b"\0")


def key_of(directory: bytes, name: bytes) -> Key:
    return Key(order(directory), name)


class Group(NamedTuple):
    """The records of one directory that stand in one leaf, by name; `contents` are parallel to `entries`."""

    directory: bytes
    names: list[bytes]
    entries: tuple[Entry, ...]
    contents: tuple[WireContent | None, ...]


class Leaf(NamedTuple):
    """A page of level 0: records in key order. `orders[i]` belongs to `groups[i]`; contents point into `packs`.

    `starts[i]` is how many records stand before `groups[i]`.
    """

    packs: tuple[BlobRef, ...]
    groups: list[Group]
    orders: list[bytes]
    first_key: Key
    last_key: Key
    starts: Sequence[int] = (0,)

    def numbered(self, position: int) -> tuple[int, int] | None:
        """Where record number `position` stands, as (group, index); None if there are not so many."""
        number = bisect_right(self.starts, position) - 1
        index = position - self.starts[number]
        return (number, index) if 0 <= index < len(self.groups[number].entries) else None

    def position(self, key: Key) -> tuple[int, int]:
        """The first record not before `key`, as (group, index); (len(groups), 0) if all are before it."""
        group = bisect_left(self.orders, key.order)
        if group == len(self.groups) or self.orders[group] != key.order:
            return group, 0
        names = self.groups[group].names
        index = bisect_left(names, key.name)
        return (group, index) if index < len(names) else (group + 1, 0)

    def content(self, group: int, index: int) -> Content:
        """Where the content of a record is stored."""
        return resolve(self.groups[group].contents[index], self.packs)

    def records(self, start: tuple[int, int] = (0, 0)) -> Iterator[Record]:
        """The records from position `start` on, in key order."""
        first_group, first_index = start
        for number in range(first_group, len(self.groups)):
            group = self.groups[number]
            for index in range(first_index, len(group.entries)):
                yield Record(group.directory, group.entries[index], self.content(number, index))
            first_index = 0


class Child(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an inner page says of a page below it: its first key, its blob, and the totals of all records under it."""

    directory: _Directory
    name: Annotated[bytes, Meta(max_length=MAX_NAME_BYTES)]
    blob: BlobRef
    entries: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    size_bytes: _Total

    @property
    def key(self) -> Key:
        return key_of(self.directory, self.name)


class Inner(NamedTuple):
    """A page of level 1 or more: `keys[i]` is the first key below `children[i]`, a page of one level less."""

    level: int
    children: tuple[Child, ...]
    keys: list[Key]


class LocationPage(NamedTuple):
    """A run of the locations of one object that has very many."""

    locations: tuple[Location, ...]


Page = Leaf | Inner | LocationPage


class _WireGroup(msgspec.Struct, frozen=True, array_like=True, gc=False):
    directory: _Directory
    entries: Annotated[tuple[Entry, ...], Meta(min_length=1)]
    contents: tuple[WireContent | None, ...]


class _WireLeaf(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=0):
    packs: tuple[BlobRef, ...]
    groups: Annotated[tuple[_WireGroup, ...], Meta(min_length=1)]


class _WireInner(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    level: Annotated[int, Meta(ge=1, le=MAX_LEVEL)]
    children: Annotated[tuple[Child, ...], Meta(min_length=1)]


class _WireLocations(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    packs: tuple[BlobRef, ...]
    locations: Annotated[tuple[WireLocation, ...], Meta(min_length=1, max_length=MAX_LOCATIONS)]


_PAGE = decoder_of(_WireLeaf | _WireInner | _WireLocations)


def decode_page(data: bytes) -> Page:
    """The page whose plain bytes are `data`. Raises FormatError if a reader must refuse it."""
    if len(data) > MAX_PAGE_BYTES:
        raise FormatError(f"a page of {len(data)} bytes is over the limit")
    wire = decode(_PAGE, data, "page")
    if isinstance(wire, _WireLeaf):
        return _read_leaf(wire)
    if isinstance(wire, _WireInner):
        return _read_inner(wire)
    return _read_locations(wire)


def encode_leaf(records: Sequence[Record]) -> bytes:
    """The plain bytes of the leaf of `records`, which are in key order."""
    table = PackTable()
    groups = tuple(_write_group(d, list(group), table) for d, group in groupby(records, attrgetter("directory")))
    return encode(_WireLeaf(table.packs, groups))


def encode_inner(level: int, children: Sequence[Child]) -> bytes:
    """The plain bytes of the inner page of `children`, pages of level `level` - 1 in key order."""
    return encode(_WireInner(level, tuple(children)))


def encode_locations(locations: Sequence[Location]) -> bytes:
    """The plain bytes of a location page."""
    table = PackTable()
    wire = tuple(map(table.location, locations))
    return encode(_WireLocations(table.packs, wire))


def _write_group(directory: bytes, records: Sequence[Record], table: PackTable) -> _WireGroup:
    entries = tuple([record.entry for record in records])
    return _WireGroup(directory, entries, tuple([table.content(record.content) for record in records]))


def _read_leaf(wire: _WireLeaf) -> Leaf:
    groups = [Group(g.directory, [entry.name for entry in g.entries], g.entries, g.contents) for g in wire.groups]
    orders = [order(group.directory) for group in groups]
    _check_ascending(orders, "directories")
    packs = PackTableCheck(wire.packs)
    for group in groups:
        _check_group(group)
        for entry, content in zip(group.entries, group.contents, strict=True):
            check_entry(entry)
            if content is not None:
                packs.content(entry, content)
    packs.finish()
    first, last = groups[0], groups[-1]
    starts = list(accumulate([len(group.entries) for group in groups[:-1]], initial=0))
    return Leaf(wire.packs, groups, orders, Key(orders[0], first.names[0]), Key(orders[-1], last.names[-1]), starts)


def _check_group(group: Group) -> None:
    """The names of one directory: legal, ascending, and none longer than a path may be."""
    if len(group.contents) != len(group.entries):
        raise FormatError(f"directory {group.directory!r}: not one content for each entry")
    check_directory(group.directory)
    _check_ascending(group.names, "names")
    if group.directory:
        check_names(group.names)
    else:
        _check_root_group(group)
    # The first half is seldom true, and cheap.
    room = MAX_PATH_BYTES - len(group.directory) - 1
    if room < MAX_NAME_BYTES and max(map(len, group.names)) > room:
        raise FormatError(f"a path in directory {group.directory!r} is over the limit")


def _check_root_group(group: Group) -> None:
    """Only the root directory itself, first of all records, has the empty name."""
    if group.names[0]:
        check_names(group.names)
    elif group.entries[0].is_directory:
        check_names(group.names[1:])
    else:
        raise FormatError("the root is not a directory")


def _check_ascending(values: Sequence[Any], what: str) -> None:
    if not ascending(values):
        raise FormatError(f"{what} of a page are not in order")


def _read_inner(wire: _WireInner) -> Inner:
    for child in wire.children:
        check_ref(child.blob)
        check_directory(child.directory)
        if child.name or child.directory:
            check_names([child.name])
    keys = [child.key for child in wire.children]
    _check_ascending(keys, "children")
    return Inner(wire.level, wire.children, keys)


def _read_locations(wire: _WireLocations) -> LocationPage:
    packs = PackTableCheck(wire.packs)
    packs.chunks(wire.locations, MAX_OBJECT_BYTES)
    packs.finish()
    return LocationPage(tuple(resolve_location(location, wire.packs) for location in wire.locations))
