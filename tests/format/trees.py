"""Records, stores in memory, and Hypothesis strategies for both."""

import stat
from collections.abc import Iterable

from hypothesis import strategies as st

from cvfs.format.blob import digest
from cvfs.format.pages import Key, Page, decode_page, key_of
from cvfs.format.tree import Root, Tree, build
from cvfs.model import NO_CONTENT, BlobRef, Content, Digest, Entry, Location, Record

MIB = 1 << 20


class Store:
    """Pages in memory, as plain bytes, and what was asked of it since `reset`."""

    def __init__(self) -> None:
        self.pages: dict[Digest, bytes] = {}
        self._decoded: dict[Digest, Page] = {}
        self.reset()

    def reset(self) -> None:
        self.puts: list[BlobRef] = []
        self.loads: list[BlobRef] = []

    def put(self, plain: bytes) -> BlobRef:
        ref = BlobRef(digest(plain), len(plain), len(plain))
        self.pages[ref.id] = plain
        self.puts.append(ref)
        return ref

    def load(self, ref: BlobRef) -> Page:
        self.loads.append(ref)
        if ref.id not in self._decoded:
            self._decoded[ref.id] = decode_page(self.pages[ref.id])
        return self._decoded[ref.id]

    def build(self, records: Iterable[Record]) -> Root:
        return build(records, self.put)

    def tree(self, root: Root) -> Tree:
        return Tree(root.page, root.level, self.load)


def key(record: Record) -> Key:
    return key_of(record.directory, record.entry.name)


def by_key(records: Iterable[Record]) -> list[Record]:
    """In key order; of records with one key, the last."""
    found = {key(record): record for record in records}
    return [found[place] for place in sorted(found)]


def entry(name: bytes, mode: int, **values: object) -> Entry:
    fields: dict[str, object] = {"uid": 0, "gid": 0, "mtime_ns": 0, "size": 0, "nlink": 1, "link_group": 0}
    fields |= {"rdev": 0, "content_id": b"", "target": b"", "xattrs": (), **values}
    return Entry(name=name, mode=mode, **fields)  # type: ignore[arg-type]


def directory(parent: bytes, name: bytes, **values: object) -> Record:
    return Record(parent, entry(name, 0o40755, **values), NO_CONTENT)


ROOT = directory(b"", b"")


def pack(number: int) -> BlobRef:
    return BlobRef(digest(b"%d" % number), MIB // 2, MIB)


def file(parent: bytes, name: bytes, content: int = 0, pack_number: int = 0, size: int = 1000) -> Record:
    """A whole file; `content` is its identity, `pack_number` where it is."""
    id_ = digest(b"content %d" % content)
    places = (Location(0, size, pack(pack_number), content % 1000 * 1000, b""),)
    return Record(parent, entry(name, 0o100644, size=size, content_id=id_), Content(places))


# Strategies

_NAME_BYTES = st.sampled_from([b"a", b"b", b"-", b"!", b"\x01", b"\xff", b"\n", b" ", b"0", b"."])
names = st.one_of(
    st.lists(_NAME_BYTES, min_size=1, max_size=4).map(b"".join),
    st.binary(min_size=1, max_size=255),
    st.just(b"n" * 255),
).filter(lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name)
paths = st.one_of(st.just(b""), st.lists(names, min_size=1, max_size=4).map(b"/".join))
digests = st.integers(0, 5).map(lambda number: digest(b"%d" % number))


def _up_to(limit: int) -> st.SearchStrategy[int]:
    """Also the places where MessagePack changes its form."""
    edges = [0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, limit]
    return st.one_of(st.sampled_from([edge for edge in edges if edge <= limit]), st.integers(0, limit))


xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name), st.binary(max_size=300), max_size=3
).map(lambda pairs: tuple(sorted(pairs.items())))
packs = st.integers(0, 3).map(pack)


@st.composite
def contents(draw: st.DrawFn) -> tuple[int, Content]:
    """A size, and a content for it."""
    kind = draw(st.sampled_from(["hole", "whole", "chunks", "pages"]))
    if kind == "hole":
        return draw(_up_to(1 << 50)), NO_CONTENT
    if kind == "whole":
        size = draw(st.integers(1, MIB))
        place = Location(0, size, draw(packs), draw(st.integers(0, MIB - size)), b"")
        return size, Content((place,))
    steps = draw(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, MIB)), min_size=1, max_size=5))
    end, places = 0, []
    for hole, length in steps:
        offset = draw(st.integers(0, MIB - length))
        places.append(Location(end + hole, length, draw(packs), offset, draw(digests)))
        end += hole + length
    size = end + draw(st.integers(0, 100))
    if kind == "chunks":
        return size, Content(tuple(places))
    return size, Content((), tuple((place.object_offset, place.pack) for place in places))


@st.composite
def entries(draw: st.DrawFn, name: bytes) -> tuple[Entry, Content]:
    kind = draw(st.sampled_from([stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK]))
    values: dict[str, object] = {
        "uid": draw(_up_to(2**32 - 2)),
        "gid": draw(_up_to(2**32 - 2)),
        "mtime_ns": draw(st.integers(-(2**63), 2**63 - 1)),
        "nlink": 1 + draw(_up_to(2**32 - 2)),
        "link_group": 0 if kind == stat.S_IFDIR else draw(_up_to(2**63 - 1)),
        "rdev": draw(_up_to(2**32 - 1)) if kind == stat.S_IFBLK else 0,
        "xattrs": draw(xattrs),
    }
    content = NO_CONTENT
    if kind == stat.S_IFREG:
        values["content_id"] = draw(digests)
        values["size"], content = draw(contents())
    if kind == stat.S_IFLNK:
        values["target"] = target = draw(st.binary(min_size=1, max_size=400).filter(lambda data: b"\0" not in data))
        values["size"] = len(target)
    return entry(name, kind | draw(st.integers(0, 0o7777)), **values), content


@st.composite
def records(draw: st.DrawFn) -> Record:
    parent = draw(paths)
    made, content = draw(entries(draw(names)))
    return Record(parent, made, content)


trees = st.lists(records(), max_size=12).map(lambda found: by_key([ROOT, *found]))
