"""Making trees (docs/format.md, section 4.3): from records alone, or from a tree and what changes in it."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from cvfs.errors import FormatError
from cvfs.format.pages import Child, Key, encode_inner, encode_leaf, key_of, order
from cvfs.format.tree.boundaries import Cutter, child_weight, directory_weight, record_weight
from cvfs.format.tree.lookup import END, START, Load, Ref, Tree, load_inner, load_leaf, refs_below
from cvfs.limits import MAX_LEVEL
from cvfs.model import BlobRef, Record, Summary

Put = Callable[[bytes], BlobRef]
"""Takes the plain bytes of a page into the store, or only names them, and returns the page's reference."""


class Root(NamedTuple):
    """A finished tree: its root page, that page's level, and the totals of its records."""

    page: BlobRef
    level: int
    summary: Summary


def build(records: Iterable[Record], put: Put) -> Root:
    """The tree of `records`, which are in key order. Raises FormatError unless the first is the root directory's."""
    return _finish(_Leaves(put).add(records), put)


def edit(tree: Tree, load: Load, put: Put, upserts: Iterable[Record], without: bytes | None = None) -> Root:
    """The tree that `tree` becomes when first all at and below the path `without` goes (None: nothing goes), then
    `upserts`, in key order, are added or put in place of what has the same key.

    It is the tree that `build` would make of the same records. Leaves that stay as they are are neither loaded nor
    put; inner pages, about one in a thousand, all are.
    """
    gone = _Subtree.of(without)
    leaves = _Leaves(put)
    return _finish(_edited(tree, load, leaves, _Upserts(upserts), gone), put)


def _edited(tree: Tree, load: Load, leaves: "_Leaves", upserts: "_Upserts", gone: "_Subtree") -> Iterator[Child]:
    for child, ref in _leaf_children(tree, load):
        new, is_same = upserts.before(ref.end), not upserts.any_before(ref.end)
        last = ref.end == END
        if not last and gone.covers(ref.key, ref.end):
            yield from leaves.feed(new)
        elif not last and is_same and leaves.at_boundary and not gone.touches(ref.key, ref.end):
            yield child
        else:
            old = (record for record in load_leaf(load, ref).records() if not gone.holds(_key(record)))
            yield from leaves.feed(_merge(old, new))
    yield from leaves.end()


def _merge(old: Iterable[Record], new: Iterable[Record]) -> Iterator[Record]:
    """Both in key order; of two records with one key, the new one."""
    for _, same in groupby(heapq.merge(old, new, key=_key), key=_key):
        *_, last = same
        yield last


def _leaf_children(tree: Tree, load: Load) -> Iterator[tuple[Child, Ref]]:
    """Each leaf of the tree. The last one may end before a boundary."""
    pending = [(Child(b"", b"", tree.root, 1, 0), tree.root_ref)]
    while pending:
        child, ref = pending.pop()
        if ref.level:
            inner = load_inner(load, ref)
            pending.extend(reversed(list(zip(inner.children, refs_below(inner, ref), strict=True))))
        else:
            yield child, ref


class _Upserts:
    """Records in key order, taken off the front by key."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = iter(records)
        self._next = next(self._records, None)

    def any_before(self, end: Key) -> bool:
        return self._next is not None and _key(self._next) < end

    def before(self, end: Key) -> Iterator[Record]:
        """One by one: a whole tree may go in before the next leaf of a nearly empty one."""
        while self._next is not None and _key(self._next) < end:
            taken, self._next = self._next, next(self._records, None)
            yield taken


class _Subtree(NamedTuple):
    """The keys of one path and of all below it: `own`, and those from `start` to before `stop`."""

    own: Key
    start: Key
    stop: Key

    @classmethod
    def of(cls, path: bytes | None) -> "_Subtree":
        if path is None:
            return cls(END, END, END)
        if not path:
            return cls(START, START, END)
        directory, _, name = path.rpartition(b"/")
        return cls(key_of(directory, name), Key(order(path), b""), Key(order(path) + b"\x01", b""))

    def holds(self, key: Key) -> bool:
        return key == self.own or self.start <= key < self.stop

    def touches(self, first: Key, end: Key) -> bool:
        return first <= self.own < end or (self.start < end and first < self.stop)

    def covers(self, first: Key, end: Key) -> bool:
        return self.start <= first and end <= self.stop


class _Leaves:
    """Cuts records into leaves, as many at a time as are complete."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._cutter = Cutter(0)
        self._records: list[Record] = []
        self._directory: bytes | None = None
        self._order = b""

    @property
    def at_boundary(self) -> bool:
        return not self._records

    def add(self, records: Iterable[Record]) -> Iterator[Child]:
        yield from self.feed(records)
        yield from self.end()

    def feed(self, records: Iterable[Record]) -> Iterator[Child]:
        for record in records:
            self._records.append(record)
            weight = record_weight(record)
            if record.directory != self._directory:
                self._directory, self._order = record.directory, order(record.directory)
                weight += directory_weight(record.directory)
            if self._cutter.ends_page(self._order, record.entry.name, weight):
                yield self._leaf()

    def end(self) -> Iterator[Child]:
        if self._records:
            yield self._leaf()

    def _leaf(self) -> Child:
        records, self._records, self._directory = self._records, [], None
        first = records[0]
        # Only a regular file has a content id.
        size_bytes = sum([record.entry.size for record in records if record.entry.content_id])
        return Child(first.directory, first.entry.name, self._put(encode_leaf(records)), len(records), size_bytes)


def _inners(children: Iterable[Child], level: int, put: Put) -> Iterator[Child]:
    cutter = Cutter(level)
    run: list[Child] = []
    for child in children:
        run.append(child)
        if cutter.ends_page(*child.key, child_weight(child)):
            yield _inner(run, level, put)
            run = []
    if run:
        yield _inner(run, level, put)


def _inner(run: list[Child], level: int, put: Put) -> Child:
    page = put(encode_inner(level, run))
    entries, size_bytes = sum(child.entries for child in run), sum(child.size_bytes for child in run)
    return Child(run[0].directory, run[0].name, page, entries, size_bytes)


def _finish(leaves: Iterable[Child], put: Put) -> Root:
    """Stack levels of inner pages on the leaves until one page is left."""
    children = list(leaves)
    if not children or children[0].key != START:
        raise FormatError("a tree without a root directory")
    level = 0
    while len(children) > 1:
        level += 1
        if level > MAX_LEVEL:
            raise FormatError("a tree over the limit of levels")
        children = list(_inners(children, level, put))
    top = children[0]
    return Root(top.blob, level, Summary(top.entries, top.size_bytes))


def _key(record: Record) -> Key:
    return key_of(record.directory, record.entry.name)
