"""Finding records in a tree (docs/format.md, section 4.4)."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cvfs.errors import FormatError
from cvfs.format.pages import Group, Inner, Key, Leaf, Page, key_of
from cvfs.model import BlobRef, Entry, Record, split

Load = Callable[[BlobRef], Page]
"""Returns the page that a reference names. Whatever it raises passes through."""

_FIRST_NAME = b"\x01"
"""No name but the root's empty one is before it."""


@dataclass(frozen=True, slots=True)
class Found:
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
            if following is None:
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

    def records(self, start: Key = Key(b"", b"")) -> Iterator[Record]:
        """All records from `start` on, in key order."""
        key: Key | None = start
        while key is not None:
            _, leaf, following = self._descend(key)
            yield from leaf.records(leaf.position(key))
            key = following

    def pages(self) -> Iterator[BlobRef]:
        """Every page of the tree, parents first; leaves are not loaded. Location pages are not among them."""
        pending = [(self.root, self.level)]
        while pending:
            ref, level = pending.pop()
            yield ref
            if level:
                inner = load_inner(self._load, ref, level)
                pending.extend((child.blob, level - 1) for child in reversed(inner.children))

    def _descend(self, key: Key) -> tuple[BlobRef, Leaf, Key | None]:
        """The leaf whose range holds `key`, and the first key behind that range."""
        ref, following, first = self.root, None, None
        for level in range(self.level, 0, -1):
            inner = load_inner(self._load, ref, level, first)
            number = max(bisect_right(inner.keys, key) - 1, 0)
            if number + 1 < len(inner.keys):
                following = inner.keys[number + 1]
            ref, first = inner.children[number].blob, inner.keys[number]
        return ref, load_leaf(self._load, ref, first), following


def load_inner(load: Load, ref: BlobRef, level: int, first: Key | None = None) -> Inner:
    """The inner page `ref`. Raises FormatError if it is none of that level, or does not begin with key `first`."""
    page = load(ref)
    if not isinstance(page, Inner) or page.level != level or (first is not None and page.keys[0] != first):
        raise FormatError(f"page {ref.id.hex()} is not what its parent says")
    return page


def load_leaf(load: Load, ref: BlobRef, first: Key | None = None) -> Leaf:
    """The leaf `ref`. Raises FormatError if it is none, or does not begin with key `first`."""
    page = load(ref)
    if not isinstance(page, Leaf) or (first is not None and page.first_key != first):
        raise FormatError(f"page {ref.id.hex()} is not what its parent says")
    return page
