"""What differs between two trees (docs/format.md, section 4.5), found by descending only where page ids differ."""

from collections.abc import Iterator
from typing import NamedTuple

from cvfs.format.pages import Key, key_of
from cvfs.format.tree.lookup import Load, Ref, Tree, load_inner, load_leaf, refs_below
from cvfs.model import Record


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
        if isinstance(a, Ref) and isinstance(b, Ref) and a.blob == b.blob:
            left.skip()
            right.skip()
        elif isinstance(a, Ref) and not _must_wait(a, b):
            left.open()
        elif isinstance(b, Ref) and not _must_wait(b, a):
            right.open()
        else:
            yield from _compare(left, right)


def _must_wait(a: Ref, b: "Ref | _Item | None") -> bool:
    """Whether the other side, at `b`, must be brought forward before page `a` is opened, so that equal pages meet."""
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
        self._stack: list[Ref | _Item] = [tree.root_ref]

    def __bool__(self) -> bool:
        return bool(self._stack)

    @property
    def head(self) -> Ref | _Item | None:
        return self._stack[-1] if self._stack else None

    def skip(self) -> None:
        self._stack.pop()

    def open(self) -> None:
        page = self._stack.pop()
        assert isinstance(page, Ref)
        if page.level:
            self._stack.extend(reversed(refs_below(load_inner(self._load, page), page)))
        else:
            records = load_leaf(self._load, page).records()
            self._stack.extend(reversed([_Item(key_of(r.directory, r.entry.name), r) for r in records]))
