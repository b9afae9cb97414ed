"""Many repositories under one root: each a directory of it, by name, and none opened before somebody looks inside.

Every inode number says whose it is: the root has its own, each repository's root one that follows from its name, and of
all others the inode index knows the repository. So any worker can tell, also one that has opened nothing yet.
"""

import errno
import stat
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from msgspec.structs import replace

from cvfs import about, missing
from cvfs.cache.index import Place
from cvfs.cache.memory import Memory
from cvfs.errors import PathError, StaleInodeError
from cvfs.fetcher import NumberLost
from cvfs.file import File, Parts
from cvfs.filesystem import FileSystem, Item, Node, TreeSize, make_node
from cvfs.inodes import ROOT_INODE
from cvfs.model import Entry

T = TypeVar("T")

NAMES_S: Final = 10.0
"""For how long the kernel may believe what the root lists, which repositories are configured or not: one message in so
many seconds for each name in use, and nobody has to tell the kernel when the configuration changes."""

_INODES: Final = 16_384
_DOTS: Final = 2
_ALL: Final = 1 << 32


class ForestTree(Protocol):
    """One repository of a forest."""

    @property
    def name(self) -> bytes: ...

    @property
    def root_inode(self) -> int: ...

    def filesystem_nowait(self) -> FileSystem:
        """Raises Missing: it has to be opened first; CvfsError: it cannot be, as was found out lately."""

    def shown_nowait(self) -> FileSystem | None:
        """As `filesystem_nowait`, for those who only look at it from outside: None if nobody has opened it yet, or it
        cannot be opened."""


class Trees(Protocol):
    """All that a forest may show."""

    def listed_nowait(self) -> Sequence[ForestTree]:
        """Those that the root lists, by name. May raise Missing, as the others."""

    def mtime_ns_nowait(self) -> int:
        """When that has changed."""

    def named_nowait(self, name: bytes) -> ForestTree | None:
        """The one called `name`, listed or not."""

    def rooted_nowait(self, inode: int) -> ForestTree | None:
        """The one with this root."""

    def numbered_nowait(self, seed: int) -> ForestTree | None:
        """The one whose inode numbers are made with this seed."""

    def opened(self) -> Sequence[FileSystem]:
        """All that are open."""


class Forest:
    """`trees` as one file system. `place_of` is the inode index, which knows each number that was given out.

    Errors: those of `FileSystem`, for the repository that they concern.
    """

    def __init__(self, trees: Trees, place_of: Callable[[int], Place | None]) -> None:
        self._trees, self._place_of = trees, place_of
        self._owners: Memory[int, ForestTree] = Memory(_INODES)

    async def bring(self, question: Callable[[], T]) -> T:
        """The answer to a `nowait` question, however long it takes: no longer than the deadlines of one repository."""
        return await missing.bring(question)

    def lookup_nowait(self, parent: int, name: bytes) -> Node:
        """The inode that directory `parent` lists as `name`, or the root, unlisted. Raises as `FileSystem` does."""
        if parent != ROOT_INODE:
            return self._filesystem_nowait(parent).lookup_nowait(parent, name)
        if len(name) > 255:
            raise PathError(errno.ENAMETOOLONG)
        tree = self._trees.named_nowait(name)
        if tree is None:
            error = PathError(errno.ENOENT, name)
            error.lasting_s = NAMES_S
            raise error
        return _outside(tree)

    def getattr_nowait(self, inode: int) -> Node:
        """The inode itself."""
        if inode == ROOT_INODE:
            return self._root_nowait()
        tree = self._trees.rooted_nowait(inode)
        return _outside(tree) if tree else self._filesystem_nowait(inode).getattr_nowait(inode)

    def listing_nowait(self, inode: int, cookie: int = 0, limit: int = _ALL) -> list[Item]:
        """The next lines of a directory's listing. To list the root opens no repository, and waits for none."""
        if inode != ROOT_INODE:
            return self._filesystem_nowait(inode).listing_nowait(inode, cookie, limit)
        if cookie < _DOTS:
            node = self._root_nowait()
            return [Item(b".", node, 1), Item(b"..", node, _DOTS)][cookie:]
        first = cookie - _DOTS
        trees = self._trees.listed_nowait()[first : first + limit]
        return [Item(tree.name, _from_afar(tree), cookie + number) for number, tree in enumerate(trees, 1)]

    def readlink_nowait(self, inode: int) -> bytes:
        """The target of a symbolic link. Raises PathError EINVAL if it is none."""
        if inode == ROOT_INODE or self._trees.rooted_nowait(inode):
            raise PathError(errno.EINVAL)
        return self._filesystem_nowait(inode).readlink_nowait(inode)

    def xattrs_nowait(self, inode: int) -> tuple[tuple[bytes, bytes], ...]:
        """The extended attributes of an inode: none of what is not open."""
        if inode == ROOT_INODE:
            return ()
        tree = self._trees.rooted_nowait(inode)
        filesystem = tree.shown_nowait() if tree else self._filesystem_nowait(inode)
        return filesystem.xattrs_nowait(inode) if filesystem else ()

    def xattr_nowait(self, inode: int, name: bytes) -> bytes | None:
        """The value of one extended attribute, None if there is none.

        To ask what `cvfs.about` has of a repository opens it; what `ls -l` asks of everything it lists does not.
        """
        if inode == ROOT_INODE:
            return None
        tree = None if name.startswith(about.PREFIX) else self._trees.rooted_nowait(inode)
        filesystem = tree.shown_nowait() if tree else self._filesystem_nowait(inode)
        return filesystem.xattr_nowait(inode, name) if filesystem else None

    def file_nowait(self, inode: int) -> File:
        """The content of a regular file. Raises PathError EISDIR or EINVAL if it is none."""
        if inode == ROOT_INODE or self._trees.rooted_nowait(inode):
            raise PathError(errno.EISDIR)
        return self._filesystem_nowait(inode).file_nowait(inode)

    def read_parts_nowait(self, inode: int, offset: int, length: int) -> Parts | None:
        """Bytes of a regular file, as `FileSystem.read_parts_nowait`."""
        if inode == ROOT_INODE or self._trees.rooted_nowait(inode):
            raise PathError(errno.EISDIR)
        return self._filesystem_nowait(inode).read_parts_nowait(inode, offset, length)

    def make_ready(self, inode: int) -> None:
        """As `FileSystem.make_ready`."""
        self._filesystem_nowait(inode).make_ready(inode)

    def space(self, inode: int = ROOT_INODE) -> TreeSize:
        """The size of the repository that an inode is in; at the root, of all that are open."""
        tree = None if inode == ROOT_INODE else self._owner_nowait(inode)
        filesystem = tree.shown_nowait() if tree else None
        spaces = [each.space() for each in ([filesystem] if filesystem else self._trees.opened())]
        return TreeSize(sum(space.size_bytes for space in spaces), sum(space.entries for space in spaces))

    def _filesystem_nowait(self, inode: int) -> FileSystem:
        tree = self._owner_nowait(inode)
        if tree is None:
            raise StaleInodeError(inode)
        return tree.filesystem_nowait()

    def _owner_nowait(self, inode: int) -> ForestTree | None:
        """Whose number it is; None if it was never given out, or by a repository that is not configured any more."""
        tree = self._owners.get(inode)
        if tree is None:
            tree = self._trees.rooted_nowait(inode)
            place = None if tree else self._place_of(inode)
            if place is not None:
                tree = self._trees.numbered_nowait(place.repository)
            elif tree is None:
                self._check_lost(inode)
            if tree is not None:
                self._owners.put(inode, tree, 1)
        return tree

    def _check_lost(self, inode: int) -> None:
        """Raise NumberLost if a number that the index does not know may be found."""
        menders = [filesystem.repository.fetcher.mender for filesystem in self._trees.opened()]
        of_use = [mender for mender in menders if mender.is_of_use]
        if of_use:
            raise NumberLost(inode, of_use)

    def _root_nowait(self) -> Node:
        count, mtime_ns = len(self._trees.listed_nowait()), self._trees.mtime_ns_nowait()
        return replace(_directory(ROOT_INODE, 2 + count, mtime_ns), lasting_s=NAMES_S)


def _outside(tree: ForestTree) -> Node:
    """The root of a repository. Of one that is not open the kernel is told what it must not remember."""
    filesystem = tree.shown_nowait()
    if filesystem is None:
        return _from_afar(tree)
    node = filesystem.getattr_nowait(tree.root_inode)
    return replace(node, lasting_s=NAMES_S if node.lasting_s is None else min(node.lasting_s, NAMES_S))


def _from_afar(tree: ForestTree) -> Node:
    """The root of a repository as the listing of a forest has it, where only the type counts."""
    return replace(_directory(tree.root_inode, 2, 0), lasting_s=0.0)


def _directory(inode: int, nlink: int, mtime_ns: int) -> Node:
    return make_node(inode, Entry(b"", stat.S_IFDIR | 0o755, 0, 0, mtime_ns, 0, nlink, 0, 0, b"", b"", ()), None)
