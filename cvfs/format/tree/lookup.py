"""Finding records in a tree (docs/format.md, section 4.4)."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from cvfs.errors import FormatError
from cvfs.format.pages import Group, Inner, Key, Leaf, Page, key_of
from cvfs.limits import MAX_PATH_BYTES
from cvfs.model import BlobRef, Entry, Record, split

Load = Callable[[BlobRef], Page]
"""Returns the page that a reference names. Whatever it raises passes through."""

_FIRST_NAME = b"\x01"
"""No name but the root's empty one is before it."""

START = Key(b"", b"")
"""The key of the root directory: the first of every tree."""

END = Key(b"\xff" * (MAX_PATH_BYTES + 1), b"")
"""Behind every key there can be."""


class Ref(NamedTuple):
    """What is known of a page before it is loaded: its level, its first key, and one behind all of its keys."""

    blob: BlobRef
    level: int
    key: Key
    end: Key


class Found(msgspec.Struct, frozen=True, gc=False):
    """A record where it stands: `index` in `group`, group number `number` of `leaf`."""

    page: BlobRef
    leaf: Leaf
    number: int
    index: int

    @property
    def group(self) -> Group:
        return self.leaf.groups[self.number]

    @property
    def entry(self) -> Entry:
        return self.group.entries[self.index]

    @property
    def record(self) -> Record:
        return Record(self.group.directory, self.entry, self.leaf.content(self.number, self.index))


class Tree:
    """The tree below the page `root` of level `level`. Holds no pages: `load` brings each when it is needed."""

    def __init__(self, root: BlobRef, level: int, load: Load) -> None:
        self.root = root
        self.level = level
        self._load = load

    @property
    def root_ref(self) -> Ref:
        return Ref(self.root, self.level, START, END)

    def find(self, directory: bytes, name: bytes) -> Found | None:
        """The record of `name` in `directory`, if there is one."""
        key = key_of(directory, name)
        page, leaf, _ = self._descend(key)
        number, index = leaf.position(key)
        if number == len(leaf.groups) or leaf.orders[number] != key.order or leaf.groups[number].names[index] != name:
            return None
        return Found(page, leaf, number, index)

    def find_path(self, path: bytes) -> Found | None:
        """The record of a path relative to the root; b"" is the root itself."""
        return self.find(*split(path))

    def seek(self, key: Key) -> Found | None:
        """The first record that is not before `key`."""
        while True:
            page, leaf, following = self._descend(key)
            number, index = leaf.position(key)
            if number < len(leaf.groups):
                return Found(page, leaf, number, index)
            if following == END:
                return None
            key = following

    def listing(self, directory: bytes, after: bytes = b"") -> Found | None:
        """The next run of a directory's listing: the record found, and those behind it in its group. None at the end.

        `after` is the last name of the run before. One run never spans two pages, so a directory of any size is listed
        page by page.
        """
        key = key_of(directory, after + b"\0" if after else _FIRST_NAME)
        found = self.seek(key)
        return found if found is not None and found.leaf.orders[found.number] == key.order else None

    def records(self, start: Key = START) -> Iterator[Record]:
        """All records from `start` on, in key order."""
        key = start
        while key != END:
            _, leaf, following = self._descend(key)
            yield from leaf.records(leaf.position(key))
            key = following

    def pages(self) -> Iterator[BlobRef]:
        """Every page of the tree, parents first; leaves are not loaded. Location pages are not among them."""
        pending = [self.root_ref]
        while pending:
            ref = pending.pop()
            yield ref.blob
            if ref.level:
                pending.extend(reversed(refs_below(load_inner(self._load, ref), ref)))

    def _descend(self, key: Key) -> tuple[BlobRef, Leaf, Key]:
        """The leaf whose range holds `key`, and the end of that range."""
        ref = self.root_ref
        while ref.level:
            inner = load_inner(self._load, ref)
            ref = _ref_below(inner, ref, bisect_right(inner.keys, key) - 1)
        return ref.blob, load_leaf(self._load, ref), ref.end


def load_inner(load: Load, ref: Ref) -> Inner:
    """The inner page `ref`. Raises FormatError if it is none of that level, or its keys are not in that range."""
    page = load(ref.blob)
    if not isinstance(page, Inner) or page.level != ref.level:
        raise FormatError(f"page {ref.blob.id.hex()} is not what its parent says")
    _check_range(ref, page.keys[0], page.keys[-1])
    return page


def load_leaf(load: Load, ref: Ref) -> Leaf:
    """The leaf `ref`. Raises FormatError if it is none, or its keys are not in that range."""
    page = load(ref.blob)
    if not isinstance(page, Leaf):
        raise FormatError(f"page {ref.blob.id.hex()} is not what its parent says")
    _check_range(ref, page.first_key, page.last_key)
    return page


def refs_below(inner: Inner, ref: Ref) -> list[Ref]:
    """The children of `inner`, which is the page `ref`."""
    return [_ref_below(inner, ref, number) for number in range(len(inner.children))]


def _ref_below(inner: Inner, ref: Ref, number: int) -> Ref:
    keys = inner.keys
    end = keys[number + 1] if number + 1 < len(keys) else ref.end
    return Ref(inner.children[number].blob, ref.level - 1, keys[number], end)


def _check_range(ref: Ref, first: Key, last: Key) -> None:
    """Each key must stand where a lookup goes to find it, and each page in one place only: otherwise a listing could
    contradict a lookup, and a few pages that name each other could make a tree without end."""
    if first != ref.key or last >= ref.end:
        raise FormatError(f"the keys of page {ref.blob.id.hex()} are not those that its parent says")
