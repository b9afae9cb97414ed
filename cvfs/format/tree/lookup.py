"""Finding records in a tree (docs/format.md, section 4.4)."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from cvfs.errors import FormatError
from cvfs.format.pages import Group, Inner, Key, Leaf, Page, key_of
from cvfs.limits import MAX_PATH_BYTES
from cvfs.model import BlobRef, Content, Entry, Record, split

Load = Callable[[BlobRef], Page]
"""Returns the page that a reference names. Whatever it raises passes through."""

_FIRST_NAME = b"\x01"
"""No name but the root's empty one is before it."""

START = Key(b"", b"")
"""The key of the root directory: the first of every tree."""

END = Key(b"\xff" * (MAX_PATH_BYTES + 1), b"")
"""Behind every key there can be."""

_RUNS: Final = 1024
"""So many a tree remembers: about 300 KB, and more than are looked into at a time."""


class Ref(msgspec.Struct, frozen=True, gc=False):
    """What is known of a page before it is loaded: its level, its first key, and one behind all of its keys."""

    blob: BlobRef
    level: int
    key: Key
    end: Key


class Run(msgspec.Struct, frozen=True, gc=False):
    """All that a directory lists from the name `first` on and before `end` (None: to its last) stands in the leaf
    `page`, as its group `number`; None: there is nothing."""

    page: BlobRef
    number: int | None
    first: bytes
    end: bytes | None


class Runs:
    """Those of one directory that are known, in order, with gaps between them."""

    __slots__ = ("_firsts", "_runs")

    def __init__(self) -> None:
        self._firsts: list[bytes] = []
        self._runs: list[Run] = []

    def around(self, name: bytes) -> Run | None:
        """The one that `name` is in, if it is known."""
        number = bisect_right(self._firsts, name)
        if not number:
            return None
        run = self._runs[number - 1]
        return run if run.end is None or name < run.end else None

    def add(self, run: Run) -> None:
        """Know one more."""
        number = bisect_left(self._firsts, run.first)
        self._firsts.insert(number, run.first)
        self._runs.insert(number, run)


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
        return self.leaf.groups[self.number].entries[self.index]

    @property
    def content(self) -> Content:
        return self.leaf.content(self.number, self.index)

    @property
    def record(self) -> Record:
        return Record(self.group.directory, self.entry, self.content)


class Tree:
    """The tree below the page `root` of level `level`. Holds no pages: `load` brings each when it is needed.

    Names are mostly looked up beside those before. So a tree remembers to which leaves it has descended, for which
    names of which directories, and does not do so again. What it remembers is of pages that may not be in memory any
    more, but never of another tree: each begins with nothing.
    """

    def __init__(self, root: BlobRef, level: int, load: Load) -> None:
        self.root = root
        self.level = level
        self._load = load
        self._runs: dict[bytes, Runs] = {}
        self._known = 0

    @property
    def root_ref(self) -> Ref:
        return Ref(self.root, self.level, START, END)

    def find(self, directory: bytes, name: bytes) -> Found | None:
        """The record of `name` in `directory`, if there is one."""
        found, _ = self._near(directory, name)
        return found if found is not None and found.entry.name == name else None

    def find_path(self, path: bytes) -> Found | None:
        """The record of a path relative to the root; b"" is the root itself."""
        return self.find(*split(path))

    def seek(self, key: Key) -> Found | None:
        """The first record that is not before `key`."""
        while True:
            ref, leaf = self._descend(key)
            number, index = leaf.position(key)
            if number < len(leaf.groups):
                return Found(ref.blob, leaf, number, index)
            if ref.end == END:
                return None
            key = ref.end

    def listing(self, directory: bytes, after: bytes = b"") -> Found | None:
        """The next run of a directory's listing: the record found, and those behind it in its group. None at the end.

        `after` is the last name of the run before. One run never spans two pages, so a directory of any size is listed
        page by page.
        """
        name = after + b"\0" if after else _FIRST_NAME
        while True:
            found, end = self._near(directory, name)
            if found is not None or end is None:
                return found
            name = end

    def records(self, start: Key = START) -> Iterator[Record]:
        """All records from `start` on, in key order."""
        key = start
        while key != END:
            ref, leaf = self._descend(key)
            yield from leaf.records(leaf.position(key))
            key = ref.end

    def pages(self) -> Iterator[BlobRef]:
        """Every page of the tree, parents first; leaves are not loaded. Location pages are not among them."""
        pending = [self.root_ref]
        while pending:
            ref = pending.pop()
            yield ref.blob
            if ref.level:
                pending.extend(reversed(refs_below(load_inner(self._load, ref), ref)))

    def _near(self, directory: bytes, name: bytes) -> tuple[Found | None, bytes | None]:
        """The first record of `directory` that is not before `name`, if it stands in the leaf that would have `name`;
        and the name from which on the directory goes on in another leaf, None if this is the last."""
        runs = self._runs.get(directory)
        run = None if runs is None else runs.around(name)
        if run is not None:
            leaf = self._load(run.page)
            assert isinstance(leaf, Leaf)  # as it was when it was come to from the root
        else:
            key = key_of(directory, name)
            ref, leaf = self._descend(key)
            run = self._remember(directory, _run(ref, leaf, key.order))
        number = run.number
        if number is None:
            return None, run.end
        names = leaf.groups[number].names
        index = bisect_left(names, name)
        return Found(run.page, leaf, number, index) if index < len(names) else None, run.end

    def _remember(self, directory: bytes, run: Run) -> Run:
        """When there are too many, all are forgotten: each that is still in use costs one more descent."""
        if self._known >= _RUNS:
            self._runs.clear()
            self._known = 0
        self._runs.setdefault(directory, Runs()).add(run)
        self._known += 1
        return run

    def _descend(self, key: Key) -> tuple[Ref, Leaf]:
        """The leaf whose range holds `key`."""
        ref = self.root_ref
        while ref.level:
            inner = load_inner(self._load, ref)
            ref = _ref_below(inner, ref, bisect_right(inner.keys, key) - 1)
        return ref, load_leaf(self._load, ref)


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


def _run(ref: Ref, leaf: Leaf, order: bytes) -> Run:
    """What the directory with this order has in `leaf`, which is the page `ref`."""
    number = bisect_left(leaf.orders, order)
    is_there = number < len(leaf.orders) and leaf.orders[number] == order
    first = ref.key.name if ref.key.order == order else b""
    end = ref.end.name if ref.end.order == order else None
    return Run(ref.blob, number if is_there else None, first, end)


def _check_range(ref: Ref, first: Key, last: Key) -> None:
    """Each key must stand where a lookup goes to find it, and each page in one place only: otherwise a listing could
    contradict a lookup, and a few pages that name each other could make a tree without end."""
    if first != ref.key or last >= ref.end:
        raise FormatError(f"the keys of page {ref.blob.id.hex()} are not those that its parent says")
