"""A second reader of repositories, written from docs/format.md alone. It must not import cvfs.

Every refusal names its rule of section 9. Slow and plain on purpose.
"""

import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3

MIB = 1 << 20
U63, U32 = (1 << 63) - 1, (1 << 32) - 1

Key = tuple[bytes, bytes]
START: Key = (b"", b"")
END: Key = (b"\xff" * 4096, b"")


class Refused(Exception):
    def __init__(self, rule: str, why: str = "") -> None:
        super().__init__(f"{rule} {why}".rstrip())
        self.rule = rule


def need(condition: object, rule: str, why: str = "") -> None:
    if not condition:
        raise Refused(rule, why)


# Section 2


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        need(size <= len(self.data) - self.at, "M1", "too short")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> int:
        (value,) = struct.unpack(">" + form, self.take(struct.calcsize(form)))
        return int(value)


_LENGTHS = {0xC4: ("bin", "B"), 0xC5: ("bin", "H"), 0xC6: ("bin", "I"), 0xDC: ("array", "H"), 0xDD: ("array", "I")}
_INTEGERS = {0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q", 0xD0: "b", 0xD1: "h", 0xD2: "i", 0xD3: "q"}


def unpack(data: bytes) -> Any:
    """The value of canonical MessagePack: int, bytes, list or None."""
    source = _Bytes(data)
    value = _unpack(source, 0)
    need(source.at == len(data), "M2")
    return value


def _unpack(source: _Bytes, depth: int) -> Any:
    need(depth < 16, "M4", "nested too deep")
    start = source.at
    first = source.number("B")
    if first < 0x80:
        return first
    if first >= 0xE0:
        return first - 0x100
    if first == 0xC0:
        return None
    if first in _INTEGERS:
        value: Any = source.number(_INTEGERS[first])
        need(source.data[start : source.at] == pack(value), "M3")
        return value
    kind, size = ("array", first & 0x0F) if first & 0xF0 == 0x90 else (None, 0)
    if first in _LENGTHS:
        kind, form = _LENGTHS[first]
        size = source.number(form)
        need(source.data[start : source.at] == _head(kind, size), "M3")
    need(kind is not None, "M1" if first == 0xC1 else "M4", f"a value of kind {first:#x}")
    if kind == "bin":
        return source.take(size)
    need(size <= len(source.data) - source.at, "M1", "too short")
    return [_unpack(source, depth + 1) for _ in range(size)]


def pack(value: Any) -> bytes:
    """The canonical encoding."""
    if value is None:
        return b"\xc0"
    if isinstance(value, int):
        return _pack_integer(value)
    if isinstance(value, bytes):
        return _head("bin", len(value)) + value
    return _head("array", len(value)) + b"".join(map(pack, value))


def _pack_integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">B", value & 0xFF)
    for first in (0xCC, 0xCD, 0xCE, 0xCF) if value >= 0 else (0xD0, 0xD1, 0xD2, 0xD3):
        form = ">" + _INTEGERS[first]
        bits = 8 * struct.calcsize(form) - (value < 0)
        if -(1 << bits) <= value < 1 << bits:
            return bytes([first]) + struct.pack(form, value)
    raise OverflowError(value)


def _head(kind: str, size: int) -> bytes:
    if kind == "array" and size < 16:
        return bytes([0x90 | size])
    for first, (what, form) in _LENGTHS.items():
        if what == kind and size < 1 << 8 * struct.calcsize(form):
            return bytes([first]) + struct.pack(">" + form, size)
    raise OverflowError(size)


def integer(value: Any, low: int, high: int) -> int:
    need(isinstance(value, int), "M4", "not an integer")
    need(low <= value <= high, "M5", f"{value} is not in {low}..{high}")
    return int(value)


def octets(value: Any, low: int, high: int) -> bytes:
    need(isinstance(value, bytes), "M4", "not bytes")
    need(low <= len(value) <= high, "M5", f"{len(value)} bytes, not {low}..{high}")
    return bytes(value)


def array(value: Any, high: int | None = None) -> list[Any]:
    need(isinstance(value, list), "M4", "not an array")
    need(high is None or len(value) <= high, "M5", f"{len(value)} items, not up to {high}")
    return list(value)


def fields(value: Any, count: int) -> list[Any]:
    need(isinstance(value, list) and len(value) == count, "M4", f"not a structure of {count} fields")
    return list(value)


# Section 3


@dataclass(frozen=True)
class Ref:
    id: bytes
    stored_size: int
    plain_size: int

    def __post_init__(self) -> None:
        need(len(self.id) == 32, "B1")
        need(1 <= self.stored_size <= self.plain_size <= 16 * MIB, "B1")

    @property
    def path(self) -> str:
        return f"data/{self.id.hex()[:2]}/{self.id.hex()[2:]}"


def unseal(ref: Ref, stored: bytes) -> bytes:
    need(len(stored) == ref.stored_size, "B2")
    need(blake3(stored).digest() == ref.id, "B3")
    if ref.stored_size == ref.plain_size:
        return stored
    need(stored[:4] == b"\x28\xb5\x2f\xfd", "B4")
    try:
        header = zstandard.get_frame_parameters(stored)
    except zstandard.ZstdError as error:
        raise Refused("B4", str(error)) from error
    need(header.content_size == ref.plain_size, "B5")
    need(header.dict_id == 0, "B4")
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    try:
        plain = decompressor.decompress(stored)
    except zstandard.ZstdError as error:
        raise Refused("B6", str(error)) from error
    need(decompressor.eof and not decompressor.unused_data, "B4")
    need(len(plain) == ref.plain_size, "B6")
    return plain


# Sections 4 to 6


@dataclass(frozen=True)
class Location:
    object_offset: int
    length: int
    pack: Ref
    pack_offset: int
    chunk_id: bytes

    @property
    def end(self) -> int:
        return self.object_offset + self.length


@dataclass(frozen=True)
class Record:
    directory: bytes
    entry: list[Any]
    locations: list[Location] = field(default_factory=list)
    location_pages: list[tuple[int, Ref]] = field(default_factory=list)

    @property
    def key(self) -> Key:
        return order(self.directory), self.entry[0]

    @property
    def path(self) -> bytes:
        return self.directory + b"/" + self.entry[0] if self.directory else bytes(self.entry[0])


@dataclass(frozen=True)
class Child:
    key: Key
    blob: Ref


@dataclass(frozen=True)
class Page:
    """`level` is -1 for location pages."""

    level: int
    records: list[Record] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    locations: list[Location] = field(default_factory=list)

    @property
    def keys(self) -> list[Key]:
        return [record.key for record in self.records] or [child.key for child in self.children]


def order(directory: bytes) -> bytes:
    return directory.replace(b"/", b"\0")


def ascending(values: list[Any], rule: str) -> None:
    need(all(a < b for a, b in pairwise(values)), rule)


def read_page(plain: bytes) -> Page:
    need(len(plain) <= 4 * MIB, "P1")
    value = unpack(plain)
    need(isinstance(value, list) and value and isinstance(value[0], int) and 0 <= value[0] <= 2, "M4")
    _, first, second = fields(value, 3)
    return (_leaf, _inner, _location_page)[value[0]](first, second)


def _leaf(packs: Any, groups: Any) -> Page:
    table = _Packs(packs)
    records = [record for group in array(groups) for record in _group(group, table)]
    need(records, "P2")
    ascending([order(group[0]) for group in groups], "P4")
    table.finish()
    return Page(0, records=records)


def _inner(level: Any, children: Any) -> Page:
    need(array(children), "P2")
    page = Page(integer(level, 1, 16), children=[_child(child) for child in children])
    ascending(page.keys, "P11")
    return page


def _location_page(packs: Any, locations: Any) -> Page:
    table = _Packs(packs)
    found = [table.location(location) for location in array(locations, 4096)]
    need(found, "P2")
    _chunks(found, 1 << 50)
    table.finish()
    return Page(-1, locations=found)


def _ref(value: Any) -> Ref:
    id_, stored_size, plain_size = fields(value, 3)
    need(isinstance(id_, bytes) and isinstance(stored_size, int) and isinstance(plain_size, int), "M4")
    return Ref(id_, stored_size, plain_size)


class _Packs:
    def __init__(self, value: Any) -> None:
        self.refs = [_ref(pack) for pack in array(value)]
        need(len(set(self.refs)) == len(self.refs), "P10")
        self.used = 0

    def location(self, value: Any) -> Location:
        offset, length, number, pack_offset, chunk_id = fields(value, 5)
        integer(number, 0, U63)
        need(number <= self.used and number < len(self.refs), "P10")
        self.used = max(self.used, number + 1)
        ref = self.refs[number]
        found = Location(
            integer(offset, 0, 1 << 50),
            integer(length, 1, 16 * MIB),
            ref,
            integer(pack_offset, 0, 16 * MIB),
            octets(chunk_id, 0, 32),
        )
        need(pack_offset + length <= ref.plain_size, "C5")
        return found

    def finish(self) -> None:
        need(self.used == len(self.refs), "P10")


def _directory(value: Any) -> bytes:
    directory = octets(value, 0, 4095)
    for name in directory.split(b"/") if directory else []:
        need(_is_name(name) and len(name) <= 255, "P7")
    return directory


def _is_name(name: bytes) -> bool:
    return name not in (b"", b".", b"..") and not set(b"/\0") & set(name)


def _child(value: Any) -> Child:
    directory, name, blob, entries, size_bytes = fields(value, 5)
    try:
        _directory(directory)
    except Refused as refused:
        raise Refused("P12" if refused.rule == "P7" else refused.rule) from refused
    octets(name, 0, 255)
    need(_is_name(name) or directory == name == b"", "P12")
    integer(entries, 1, U63)
    integer(size_bytes, 0, U63)
    return Child((order(directory), name), _ref(blob))


def _group(value: Any, table: _Packs) -> Iterator[Record]:
    directory, entries, contents = fields(value, 3)
    _directory(directory)
    need(array(entries), "P2")
    need(len(array(contents)) == len(entries), "P3")
    for entry in entries:
        _entry(entry, directory)
    ascending([entry[0] for entry in entries], "P5")
    for entry, content in zip(entries, contents, strict=True):
        yield Record(directory, entry) if content is None else _content(directory, entry, content, table)


def _entry(value: Any, directory: bytes) -> None:
    name, mode, uid, gid, mtime_ns, size, nlink, link_group, rdev, content_id, target, xattrs = fields(value, 12)
    octets(name, 0, 255)
    integer(mode, 0, 0xFFFF)
    integer(uid, 0, U32 - 1)
    integer(gid, 0, U32 - 1)
    integer(mtime_ns, -(1 << 63), U63)
    integer(size, 0, 1 << 50)
    integer(nlink, 1, U32)
    integer(link_group, 0, U63)
    integer(rdev, 0, U32)
    octets(content_id, 0, 32)
    octets(target, 0, 4095)
    if name == b"" == directory:
        need(mode & 0xF000 == 0x4000, "P9")
    else:
        need(name, "P6" if directory else "P9")
        need(_is_name(name), "P6")
    need(len(directory) + 1 + len(name) <= 4095, "P8")
    _fits_type(value)
    _xattrs(xattrs)


def _fits_type(entry: list[Any]) -> None:
    mode, size, link_group, rdev, content_id, target = (entry[i] for i in (1, 5, 7, 8, 9, 10))
    kind = mode & 0xF000
    need(kind in (0x1000, 0x2000, 0x4000, 0x6000, 0x8000, 0xA000, 0xC000), "E1")
    need(len(content_id) == (32 if kind == 0x8000 else 0), "E2")
    need(rdev == 0 or kind in (0x2000, 0x6000), "E2")
    need(link_group == 0 or kind != 0x4000, "E2")
    need(size == 0 or kind in (0x8000, 0xA000), "E2")
    if kind == 0xA000:
        need(0 < len(target) == size and b"\0" not in target, "E3")
    else:
        need(not target, "E2")


def _xattrs(value: Any) -> None:
    for pair in array(value):
        name, content = fields(pair, 2)
        octets(name, 1, 255)
        octets(content, 0, 65536)
        need(b"\0" not in name, "E4")
    ascending([name for name, _ in value], "E4")
    need(sum(len(name) + len(content) for name, content in value) <= 262144, "E5")


def _content(directory: bytes, entry: list[Any], value: Any, table: _Packs) -> Record:
    wire, pages = fields(value, 2)
    locations = [table.location(location) for location in array(wire, 4096)]
    refs = [_location_page_ref(pair) for pair in array(pages, 4096)]
    need(entry[1] & 0xF000 == 0x8000, "C1")
    need(bool(locations) != bool(refs), "C1")
    ascending([offset for offset, _ in refs], "C6")
    need(not refs or refs[-1][0] < entry[5], "C6")
    if len(locations) == 1 and not locations[0].chunk_id:
        need(locations[0].object_offset == 0 and locations[0].length == entry[5], "C2")
    else:
        _chunks(locations, entry[5])
    return Record(directory, entry, locations, refs)


def _location_page_ref(value: Any) -> tuple[int, Ref]:
    offset, ref = fields(value, 2)
    return integer(offset, 0, 1 << 50), _ref(ref)


def _chunks(locations: list[Location], size: int) -> None:
    end = 0
    for location in locations:
        need(len(location.chunk_id) == 32 and location.object_offset >= end, "C3")
        end = location.end
    need(end <= size, "C4")


# Section 7


def read_manifest(data: bytes) -> dict[str, Any]:
    need(len(data) <= 64 << 10, "J1")
    document = _json(data)
    need(isinstance(document.get("format"), int), "J6")
    need(document["format"] == 1, "J4")
    features = document.get("features", [])
    need(isinstance(features, list) and all(isinstance(name, str) for name in features), "J6")
    need(not features, "J5")
    _member(document, "revision", U63)
    _member(document, "published_s", U63)
    _member(document, "entries", U63, 1)
    _member(document, "size_bytes", U63)
    for key, limit, default in (("repository", 255, None), ("message", 4096, "")):
        need(isinstance(document.get(key, default), str) and len(document.get(key, default)) <= limit, "J6")
    need(re.fullmatch(r"(?!-)[a-z0-9-]+(?<!-)(\.(?!-)[a-z0-9-]+(?<!-))*", document["repository"]), "J7")
    json_ref(document.get("root"))
    _member(document["root"], "level", 16)
    parent = None if document.get("parent") is None else json_ref(document["parent"])
    ancestors = document.get("ancestors", [])
    need(isinstance(ancestors, list) and len(ancestors) <= 256, "J6")
    refs = list(map(_ancestor, ancestors))
    chain = [*ancestors, document]
    need(all(one["revision"] < other["revision"] for one, other in pairwise(chain)), "J9")
    need(all(one["published_s"] <= other["published_s"] for one, other in pairwise(chain)), "J9")
    need(not refs or refs[-1] == parent, "J9")
    return document


def read_tags(data: bytes) -> dict[str, Any]:
    need(len(data) <= MIB, "J1")
    document = _json(data)
    need(isinstance(document.get("format"), int), "J6")
    need(document["format"] == 1, "J4")
    tags = document.get("tags")
    need(isinstance(tags, dict) and len(tags) <= 2048, "J6")
    for name, value in dict(tags or {}).items():
        need(re.fullmatch("(?![0-9]+$)[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", name), "J11")
        _ancestor(value)
    return document


def check_history(later: bytes, earlier: bytes) -> None:
    said, found = read_manifest(later), read_manifest(earlier)
    for key in ("revision", "published_s"):
        need(said["ancestors"][-1][key] == found[key], "J10")
    need(said["repository"] == found["repository"], "J10")


def _ancestor(value: Any) -> Ref:
    ref = json_ref(value)
    _member(value, "revision", U63)
    _member(value, "published_s", U63)
    return ref


def _json(data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), "J3")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise Refused("J2", constant)

    try:
        document = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
        json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair is no character
    except (ValueError, RecursionError) as error:
        raise Refused("J2", str(error)) from error
    need(isinstance(document, dict), "J2")
    return dict(document)


def _member(document: dict[str, Any], key: str, high: int, low: int = 0) -> None:
    value = document.get(key)
    need(isinstance(value, int) and not isinstance(value, bool) and low <= value <= high, "J6", key)


def json_ref(value: Any) -> Ref:
    need(isinstance(value, dict) and isinstance(value.get("id"), str), "J6")
    need(re.fullmatch(r"[0-9a-f]{64}", value["id"]), "J8")
    for key in ("stored_size", "plain_size"):
        need(isinstance(value.get(key), int) and not isinstance(value[key], bool), "J6")
    return Ref(bytes.fromhex(value["id"]), value["stored_size"], value["plain_size"])


# Sections 4.4 and 6: all of a tree

Fetch = Callable[[Ref], bytes]


def walk(fetch: Fetch, root: Ref, level: int) -> Iterator[Record]:
    """Every record, in key order."""
    return _walk(fetch, Child(START, root), level, END)


def _walk(fetch: Fetch, child: Child, level: int, end: Key) -> Iterator[Record]:
    page = load(fetch, child.blob)
    need(page.level == level, "T1")
    need(page.keys[0] == child.key, "T2")
    need(page.keys[-1] < end, "T3")
    yield from page.records
    for below, stop in zip(page.children, [*page.keys[1:], end], strict=False):
        yield from _walk(fetch, below, level - 1, stop)


def load(fetch: Fetch, ref: Ref) -> Page:
    need(ref.plain_size <= 4 * MIB, "P1")
    return read_page(unseal(ref, fetch(ref)))


def locations_of(fetch: Fetch, record: Record) -> list[Location]:
    found = list(record.locations)
    ends = [*(offset for offset, _ in record.location_pages), record.entry[5]][1:]
    for (offset, ref), end in zip(record.location_pages, ends, strict=True):
        page = load(fetch, ref)
        need(page.locations, "C7")
        need(page.locations[0].object_offset == offset and page.locations[-1].end <= end, "C7")
        found += page.locations
    return found


def content(fetch: Fetch, record: Record) -> Iterator[bytes]:
    """The bytes of a regular file."""
    position = 0
    seen = blake3()
    for location in locations_of(fetch, record):
        data = unseal(location.pack, fetch(location.pack))[location.pack_offset :][: location.length]
        need(blake3(data).digest() == (location.chunk_id or record.entry[9]), "C8")
        for piece in (bytes(location.object_offset - position), data):
            seen.update(piece)
            yield piece
        position = location.end
    hole = bytes(record.entry[5] - position)
    seen.update(hole)
    need(seen.digest() == record.entry[9], "C8")
    yield hole


def list_store(store: Path) -> list[dict[str, Any]]:
    """What is in a repository: its manifest, then each path with its metadata and the CRC-32 of its content."""
    manifest = read_manifest((store / "manifest.json").read_bytes())

    def fetch(ref: Ref) -> bytes:
        return (store / ref.path).read_bytes()

    def show(record: Record) -> dict[str, Any]:
        _, mode, uid, gid, mtime_ns, size, nlink, link_group, rdev, content_id, target, xattrs = record.entry
        line = {"path": record.path, "mode": f"{mode:o}", "uid": uid, "gid": gid, "mtime_ns": mtime_ns, "size": size}
        line |= {"nlink": nlink, "link_group": link_group, "rdev": rdev, "target": target, "xattrs": dict(xattrs)}
        if mode & 0xF000 == 0x8000:
            line |= {"content_id": content_id.hex(), "crc32": zlib.crc32(b"".join(content(fetch, record)))}
        return {key: _text(value) for key, value in line.items() if value or key == "path"}

    records = walk(fetch, json_ref(manifest["root"]), manifest["root"]["level"])
    return [{"revision": manifest["revision"], "repository": manifest["repository"]}, *map(show, records)]


def _text(value: Any) -> Any:
    """JSON knows no bytes: each byte as the character of that number."""
    if isinstance(value, dict):
        return {_text(key): _text(item) for key, item in value.items()}
    return value.decode("latin-1") if isinstance(value, bytes) else value


# Section 4.3


def cuts(keys: list[Key], weights: list[int], level: int) -> list[int]:
    """After how many items each page of a level ends; `weights` as if no record were the first of its directory."""
    import xxhash

    found, total = [], 0
    for number, ((prefix, name), weight) in enumerate(zip(keys, weights, strict=True)):
        if level == 0 and (total == 0 or prefix != keys[number - 1][0]):
            weight += 8 + len(prefix)
        total += weight
        scale = 393216 if total < 98304 else 24576
        drawn = xxhash.xxh3_64_intdigest(prefix + b"\0" + name, seed=level) % (1 << 32)
        if total >= 524288 or (total >= 32768 and drawn * scale < weight << 32):
            found.append(number + 1)
            total = 0
    return found if found[-1:] == [len(keys)] else [*found, len(keys)]
