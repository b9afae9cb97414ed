"""One repository at one revision: paths to records, pages brought when they are needed.

Methods named `x_nowait` answer from memory and raise PageMissing for the page that they lack; `bring` turns such a
question into one that waits.
"""

import errno
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeVar

from cvfs.cache.index import Place
from cvfs.errors import PathError
from cvfs.fetcher import Fetcher
from cvfs.format.pages import Leaf, Page
from cvfs.format.tree import Tree
from cvfs.format.tree.lookup import Found, load_inner, refs_below
from cvfs.inodes import ROOT_INODE, Numbering
from cvfs.missing import bring
from cvfs.model import BlobRef, Manifest, split

T = TypeVar("T")


class Repository:
    """The tree of `manifest`, read through `fetcher`. `root_inode` is the number of its root where it is mounted."""

    def __init__(
        self, manifest: Manifest, numbering: Numbering, fetcher: Fetcher, root_inode: int = ROOT_INODE
    ) -> None:
        self.manifest = manifest
        self.root_inode = root_inode
        self.numbering = numbering
        self.fetcher = fetcher
        self._tree = Tree(manifest.root, manifest.level, fetcher.page_nowait)

    def at(self, manifest: Manifest) -> "Repository":
        """The same repository at another revision; what is in memory serves both."""
        return Repository(manifest, self.numbering, self.fetcher, self.root_inode)

    async def bring(self, question: Callable[[], T]) -> T:
        """The answer to a `nowait` question, with every page brought that it turns out to need.

        Raises what the question raises, and what Fetcher.page does. Not a checkpoint if the answer was in memory.
        """
        return await bring(question)

    def find_nowait(self, path: bytes) -> Found:
        """The record of `path`, which is relative to the root. Raises PathError ENOENT or ENOTDIR."""
        found = self._tree.find_path(path)
        if found is None:
            raise PathError(self._why_not(path), path)
        return found

    def listing_nowait(self, directory: bytes, after: bytes = b"") -> Found | None:
        """The next run of a directory's listing, see `Tree.listing`."""
        return self._tree.listing(directory, after)

    def located_nowait(self, place: Place) -> Found:
        """The record at a place that the inode index gave."""
        leaf = self.leaf_nowait(place.page)
        at = leaf.numbered(place.position)
        if at is None:
            raise PathError(errno.ESTALE)
        return Found(place.page, leaf, *at)

    def pages_above_nowait(self, leaf: Leaf) -> list[BlobRef]:
        """The pages that lead from the root to a leaf of this revision, which is not one of them."""
        key, ref, above = leaf.first_key, self._tree.root_ref, []
        while ref.level:
            above.append(ref.blob)
            inner = load_inner(self.fetcher.page_nowait, ref)
            ref = refs_below(inner, ref)[bisect_right(inner.keys, key) - 1]
        return above

    def leaf_nowait(self, ref: BlobRef) -> Leaf:
        page: Page = self.fetcher.page_nowait(ref)
        if not isinstance(page, Leaf):
            raise PathError(errno.ESTALE)
        return page

    def lookup_nowait(self, directory: bytes, name: bytes) -> Found | None:
        """The record that `directory` lists as `name`, if it is a directory and does."""
        return self._tree.find(directory, name)

    def inode_of(self, found: Found) -> int:
        """The inode number of a record just found."""
        return self.inodes_of(found)[found.index] if found.entry.name else self.root_inode

    def inodes_of(self, found: Found) -> Sequence[int]:
        """The inode numbers of all records in the group of one just found."""
        return self.fetcher.numbers_nowait(found.page)[found.number]

    def directory_inode(self, path: bytes) -> int:
        """The inode number of the directory at `path`."""
        return self.fetcher.resolve(self.numbering.directory(path)) if path else self.root_inode

    def _why_not(self, path: bytes) -> int:
        """ENOTDIR if some directory on the way to `path` is something else, else ENOENT."""
        directory, _ = split(path)
        while directory:
            found = self._tree.find_path(directory)
            if found is not None:
                return errno.ENOENT if found.entry.is_directory else errno.ENOTDIR
            directory, _ = split(directory)
        return errno.ENOENT
