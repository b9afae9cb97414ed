"""The pages of a store, decoded."""

from cvfs.format.pages import Inner, Page, decode_page
from cvfs.format.tree import Root, Tree
from cvfs.model import BlobRef, Manifest
from publisher.repository.history import read_blob
from publisher.store import Store

_CACHED_PAGES = 64
"""Enough for every inner page of a tree of a few million entries, and the leaves of one walk."""


class PageLoader:
    """Loads the pages of a store; the last few are kept decoded, inner pages longer than leaves."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._inner: dict[BlobRef, Page] = {}
        self._other: dict[BlobRef, Page] = {}

    def __call__(self, ref: BlobRef) -> Page:
        page = self._inner.get(ref) or self._other.get(ref)
        if page is None:
            page = decode_page(read_blob(self._store, ref))
            kept = self._inner if isinstance(page, Inner) else self._other
            kept[ref] = page
            if len(kept) > _CACHED_PAGES:
                del kept[next(iter(kept))]
        return page

    def tree(self, manifest: Manifest) -> Tree:
        return Tree(manifest.root, manifest.level, self)

    def tree_at(self, root: Root) -> Tree:
        """One that no manifest names yet."""
        return Tree(root.page, root.level, self)
