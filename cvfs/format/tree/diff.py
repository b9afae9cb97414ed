"""What differs between two trees (docs/format.md, section 4.5), found by descending only where page ids differ."""

from collections.abc import Iterator
from typing import NamedTuple

from cvfs.format.pages import Child, Key, key_of
from cvfs.format.tree.lookup import Load, Tree, load_inner, load_leaf
from cvfs.model import Record


class _Page(NamedTuple):
    """A page not yet opened. `key` is its first."""

    key: Key
    level: int
    child: Child


class _Item(NamedTuple):
    key: Key
    record: Record


def diff(old: Tree, new: Tree, load: Load) -> Iterator[tuple[Record | None, Record | None]]:
    """The records that are not the same in both, in key order, as (old, new); None where there is none.

    Two records with the same entry are the same, wherever their content is stored.
    """
    left, right = _Cursor(old, load), _Cursor(new, load)
    while left or right:
        a, b = left.head, right.head
        if isinstance(a, _Page) and isinstance(b, _Page) and a.child.blob == b.child.blob:
            left.skip()
            right.skip()
        elif isinstance(a, _Page) and not _must_wait(a, b):
            left.open()
        elif isinstance(b, _Page):
            right.open()
        else:
            yield from _compare(left, right)


def _must_wait(a: _Page, b: "_Page | _Item | None") -> bool:
    """Whether the other side must be brought forward before page `a` is opened, so that equal pages can meet."""
    if b is None:
        return False
    if isinstance(b, _Item):
        return b.key < a.key
    return b.key < a.key or (b.key == a.key and b.level > a.level)


def _compare(left: "_Cursor", right: "_Cursor") -> Iterator[tuple[Record | None, Record | None]]:
    """Step past the smaller of two records, or past both."""
    a, b = left.head, right.head
    old = a.record if isinstance(a, _Item) and (b is None or a.key <= b.key) else None
    new = b.record if isinstance(b, _Item) and (a is None or b.key <= a.key) else None
    if old is not None:
        left.skip()
    if new is not None:
        right.skip()
    if old is None or new is None or old.entry != new.entry:
        yield old, new


class _Cursor:
    """A walk through a tree in key order that opens pages only when told to."""

    def __init__(self, tree: Tree, load: Load) -> None:
        self._load = load
        root = Child(b"", b"", tree.root, 1, 0)
        self._stack: list[_Page | _Item] = [_Page(Key(b"", b""), tree.level, root)]

    def __bool__(self) -> bool:
        return bool(self._stack)

    @property
    def head(self) -> _Page | _Item | None:
        return self._stack[-1] if self._stack else None

    def skip(self) -> None:
        self._stack.pop()

    def open(self) -> None:
        page = self._stack.pop()
        assert isinstance(page, _Page)
        if page.level:
            inner = load_inner(self._load, page.child.blob, page.level)
            below = zip(inner.keys, inner.children, strict=True)
            self._stack.extend(reversed([_Page(key, page.level - 1, child) for key, child in below]))
        else:
            records = load_leaf(self._load, page.child.blob).records()
            self._stack.extend(reversed([_Item(key_of(r.directory, r.entry.name), r) for r in records]))
